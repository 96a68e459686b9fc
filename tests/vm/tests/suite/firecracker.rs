//! Sandboxes in Firecracker, without a jail, on devices.

use cowslip_e2e::{Instance, Kernel, Setup};
use cowslip_model::api::{Checkpoint, Sandbox};

/// An instance that uses Firecracker; none, told loudly, where there is none.
fn instance() -> Option<Instance> {
    if std::env::var_os("COWSLIP_FIRECRACKER").is_none() {
        eprintln!("SKIPPED: COWSLIP_FIRECRACKER names no Firecracker; no package has one");
        return None;
    }
    let setup = Setup {
        machine: "vmm = \"firecracker\"\nisolation = \"direct\"".to_owned(),
        ..Setup::default()
    };
    Some(Instance::ready(setup, Kernel::Guest))
}

/// The main job: run, checkpoint, fork two at once, pause, resume, an engine that is killed, stop, start.
#[test]
fn a_sandbox_in_firecracker_has_its_whole_life() {
    let Some(host) = instance() else { return };
    let files = host.files();
    let _ = host.say("run -d --name one --memory 128M box").ok();
    let _ = host
        .sh("one", "echo kept >/root/f; echo in-memory >/run/g; sync")
        .ok();
    let point: Checkpoint = host.say("checkpoint create one --name point").json();
    let _ = host.sh("one", "echo later >/root/f").ok();
    let forks: Vec<Sandbox> = host.say("fork point --name two --count 2").json();
    assert_eq!(forks.len(), 2);
    for fork in &forks {
        assert_eq!(fork.forked_from, Some(point.id));
        let name = fork.name.to_string();
        assert_eq!(host.sh(&name, "cat /root/f /run/g").ok(), "kept\nin-memory");
        let _ = host.sh(&name, "echo own >/root/f; sync").ok();
    }
    assert_eq!(host.sh("one", "cat /root/f").ok(), "later");
    let name = forks[0].name.to_string();
    let _ = host.say(&format!("pause {name}")).ok();
    let _ = host.say(&format!("resume {name}")).ok();
    assert_eq!(host.sh(&name, "cat /root/f").ok(), "own");
    host.kill_engine();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "later", "adopted");
    let _ = host.say("stop one").ok();
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "later");
    let all: Vec<String> = forks.iter().map(|fork| fork.name.to_string()).collect();
    let _ = host.say(&format!("rm --force one {}", all.join(" "))).ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&files);
}

/// A jail is what is asked for unless the configuration says otherwise, and nothing less is given.
#[test]
fn nobody_is_run_without_a_jail_unasked() {
    let setup = Setup {
        machine: "vmm = \"firecracker\"".to_owned(),
        ..Setup::default()
    };
    let host = Instance::ready(setup, Kernel::Guest);
    let _ = host
        .say("run --name one box -- true")
        .run()
        .refused(&["jail", "isolation = \"direct\""]);
}
