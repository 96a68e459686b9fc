//! Images that are not written, or not whole.

use std::os::unix::fs::FileExt;
use std::path::Path;

use cowslip_e2e::{Changes, Instance, Kernel, Setup, box_tar};
use cowslip_model::SandboxState;

use super::{
    JAIL, assert_nothing_but, assert_state, checkpoints, exchange, failed, jailed, kept,
    kept_with_memory, kill, monitor, run_one,
};

/// Firecracker is killed as soon as it has begun to write the memory.
fn killed_while_it_saves(host: &Instance, verb: &str) {
    let before = host.files();
    let made = Changes::made_in(&exchange(host, "one"));
    let pid = monitor(host, "one");
    let saving = host.say(verb).start();
    made.wait_any();
    kill(pid);
    saving.wait().refused(&["save"]);
    let reason = failed(host, "one");
    assert!(reason.contains("signal 9"), "{verb}: {reason}");
    assert!(checkpoints(host).is_empty(), "{verb}");
    assert!(!exchange(host, "one").join("memory").exists(), "{verb}");
    assert_eq!(host.machines(), [], "{verb}");
    host.assert_agreement();
    let _ = host.say("start one").ok();
    kept(host, "one");
    // The layer that a checkpoint began stays below the disk; but for it all is as before.
    let more = host.files().difference(&before).count();
    assert!(more <= 1, "{verb}: {:?}", host.files());
}

#[test]
fn a_firecracker_that_is_killed_in_a_save_leaves_no_image() {
    // covers R8 R18 R30
    let Some(host) = jailed() else { return };
    let files = host.files();
    run_one(&host);
    killed_while_it_saves(&host, "checkpoint create one --name point");
    killed_while_it_saves(&host, "pause one");
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("fork point --name two").ok();
    kept(&host, "two");
    let _ = host.say("rm --force one two").ok();
    let _ = host.say("checkpoint rm point").ok();
    assert_nothing_but(&host, &files);
}

/// The host's disk has no room for the memory: Firecracker says so, and the guest goes on.
#[test]
fn a_guest_goes_on_when_its_memory_finds_no_room() {
    // covers R8 R30
    if super::jailed().is_none() {
        return;
    }
    let host = Instance::with(Setup {
        machine: JAIL.to_owned(),
        storage: "low_water = 0".to_owned(),
        disk: Some("120m".to_owned()),
        ..Setup::default()
    });
    host.import_kernel(Kernel::Guest);
    host.import("box", box_tar());
    let files = host.files();
    run_one(&host);
    for verb in ["checkpoint create one --name point", "pause one"] {
        host.say(verb).run().refused(&["No space left on device"]);
        assert_state(&host, "one", SandboxState::Running);
        kept_with_memory(&host, "one");
        assert!(checkpoints(&host).is_empty());
        assert!(!exchange(&host, "one").join("memory").exists());
        host.assert_agreement();
    }
    host.resize_disk("600m");
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("fork point --name two").ok();
    kept_with_memory(&host, "two");
    let _ = host.say("pause one").ok();
    let _ = host.say("resume one").ok();
    kept_with_memory(&host, "one");
    let _ = host.say("rm --force one two").ok();
    let _ = host.say("checkpoint rm point").ok();
    assert_nothing_but(&host, &files);
}

/// Some bytes of a file, other than they were while this lives.
struct Damage {
    file: std::fs::File,
    at: u64,
    bytes: [u8; 8],
}

impl Damage {
    fn new(path: &Path, from_end: u64) -> Self {
        let file = std::fs::File::options().read(true).write(true).open(path);
        let file = file.unwrap();
        let at = file.metadata().unwrap().len() - from_end;
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        file.write_all_at(&bytes.map(|byte| !byte), at).unwrap();
        Self { file, at, bytes }
    }
}

impl Drop for Damage {
    fn drop(&mut self) {
        self.file.write_all_at(&self.bytes, self.at).unwrap();
    }
}

#[test]
fn an_image_that_is_damaged_is_refused_and_harms_nobody() {
    // covers R8 R18 R32
    /// The magic number, the length of the device state, and the end of that itself, which its checksum covers.
    const PLACES: [u64; 3] = [8, 16, 24];
    let Some(host) = jailed() else { return };
    let files = host.files();
    run_one(&host);
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("pause one").ok();
    let all = host.files();
    let point = checkpoints(&host).remove(0).id.to_string();
    let memory = host.state().join("checkpoints").join(point).join("memory");
    let id = host.sandbox("one").id.to_string();
    let paused = host.state().join("sandboxes").join(id).join("paused");
    for place in PLACES {
        let damage = [&memory, &paused].map(|path| Damage::new(path, place));
        let forked = host.say("fork point --name two").run();
        eprintln!("damaged at {place} from the end: {}", forked.stderr.trim());
        forked.refused(&[]);
        assert_eq!(host.sandboxes(), ["one"]);
        host.say("resume one").run().refused(&[]);
        assert_state(&host, "one", SandboxState::Paused);
        assert_nothing_but(&host, &all);
        drop(damage);
    }
    let _ = host.say("fork point --name two").ok();
    kept_with_memory(&host, "two");
    let _ = host.say("resume one").ok();
    kept_with_memory(&host, "one");
    let _ = host.say("rm --force one two").ok();
    let _ = host.say("checkpoint rm point").ok();
    assert_nothing_but(&host, &files);
}
