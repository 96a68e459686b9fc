//! Machines that do not come up: a jailer that dies or hangs, a jail that cannot be made, a guest that
//! never answers.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use cowslip_e2e::Instance;
use cowslip_model::SandboxState;

use super::{
    JAIL, assert_nothing_but, assert_state, failed, jailed, kept, kept_with_memory, run_one,
};

/// A jailer that does what a script says first, while a file is there.
struct Trouble {
    host: Instance,
    file: PathBuf,
}

impl Trouble {
    fn new(script: &str) -> Option<Self> {
        let mut host = jailed()?;
        let file = host.scratch().join("trouble");
        let jailer = host.scratch().join("jailer");
        let real = std::env::var("COWSLIP_JAILER").unwrap();
        let here = file.display();
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" != --version ] && [ -e {here} ]; then\n{script}\nfi\nexec {real} \"$@\"\n"
        );
        std::fs::write(&jailer, text).unwrap();
        std::fs::set_permissions(&jailer, std::fs::Permissions::from_mode(0o755)).unwrap();
        host.set_variable("COWSLIP_JAILER", jailer.to_str().unwrap());
        Some(Self { host, file })
    }

    fn begin(&self) {
        std::fs::write(&self.file, "").unwrap();
    }

    fn end(&self) {
        std::fs::remove_file(&self.file).unwrap();
    }
}

/// One that is stopped, a checkpoint of it, and one that is paused: what starts a machine has something
/// to start from.
fn prepare(host: &Instance) {
    run_one(host);
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("stop one").ok();
    let _ = host.say("fork point --name two").ok();
    let _ = host.say("pause two").ok();
}

/// No verb that starts a machine works, each says `why`, and nothing of it is left.
fn every_start_fails(host: &Instance, why: &str) {
    let files = host.files();
    let fails = |verb: &str| {
        let done = host.say(verb).run();
        assert!(done.code != 0 && done.stderr.contains(why), "{done}");
    };
    fails("start one");
    assert!(failed(host, "one").contains(why));
    fails("resume two");
    assert_state(host, "two", SandboxState::Paused);
    fails("fork point --name three");
    fails("run -d --name four box");
    assert_eq!(host.sandboxes(), ["one", "two"]);
    assert_nothing_but(host, &files);
}

/// All of them work.
fn every_start_works(host: &Instance) {
    let _ = host.say("start one").ok();
    kept(host, "one");
    let _ = host.say("resume two").ok();
    kept_with_memory(host, "two");
    let _ = host.say("fork point --name three").ok();
    kept_with_memory(host, "three");
    let _ = host.say("run -d --name four --memory 128M box").ok();
    assert_eq!(host.sh("four", "echo yes").ok(), "yes");
}

fn remove_all(host: &Instance) {
    let _ = host.say("rm --force one two three four").ok();
    let _ = host.say("checkpoint rm point").ok();
}

#[test]
fn a_jailer_that_dies_fails_what_it_was_for_and_nothing_else() {
    // covers R8 R18
    let Some(trouble) = Trouble::new("echo the jailer is ill >&2; exit 1") else {
        return;
    };
    let host = &trouble.host;
    let files = host.files();
    prepare(host);
    trouble.begin();
    every_start_fails(host, "the jailer is ill");
    trouble.end();
    every_start_works(host);
    remove_all(host);
    assert_nothing_but(host, &files);
}

/// It stops itself before it is Firecracker: nothing ever listens. `rm --force` ends the start.
#[test]
fn a_jailer_that_hangs_is_not_waited_for() {
    // covers R8 R18
    let Some(trouble) = Trouble::new("kill -STOP $$") else {
        return;
    };
    let host = &trouble.host;
    let files = host.files();
    let _ = host.say("create --name one --memory 128M box").ok();
    trouble.begin();
    let start = host.say("start one").start();
    while host.machines().is_empty() {
        std::thread::yield_now();
    }
    let removed = host.say("rm --force one").run();
    eprintln!("rm --force of one whose jailer hangs: {:?}", removed.took);
    let _ = removed.ok();
    let started = start.wait();
    let _ = started.refused(&["was removed before it was ready"]);
    assert_nothing_but(host, &files);
    trouble.end();
    run_one(host);
    let _ = host.say("rm --force one").ok();
    assert_nothing_but(host, &files);
}

/// The engine may not make devices: the node of the disk in the jail cannot be made.
#[test]
fn a_jail_without_its_disk_is_no_jail() {
    // covers R8 R9 R18
    let Some(host) = jailed() else { return };
    let files = host.files();
    prepare(&host);
    let no_nodes = ["--bounding-set", "-mknod", "--inh-caps", "-mknod"];
    host.start_engine_by(&[&["setpriv"], &no_nodes[..]].concat());
    every_start_fails(&host, "Operation not permitted");
    host.kill_engine();
    every_start_works(&host);
    remove_all(&host);
    assert_nothing_but(&host, &files);
}

#[test]
fn a_guest_that_never_answers_is_ended() {
    // covers R8 R18
    let Some(host) = jailed() else { return };
    let files = host.files();
    prepare(&host);
    host.configure_machine(&format!("{JAIL}\nboot_timeout = 1\nrestore_timeout = 0"));
    every_start_fails(&host, "agent");
    host.configure_machine(JAIL);
    every_start_works(&host);
    remove_all(&host);
    assert_nothing_but(&host, &files);
}
