//! Sandboxes in Firecracker, in a jail and without one, on devices.

use cowslip_e2e::{Instance, Kernel, Setup};
use cowslip_model::api::{Checkpoint, Sandbox};

const JAIL: &str = "vmm = \"firecracker\"";
const DIRECT: &str = "vmm = \"firecracker\"\nisolation = \"direct\"";

/// An instance that uses Firecracker; none, told loudly, where there is none.
fn instance(machine: &str) -> Option<Instance> {
    for name in ["COWSLIP_FIRECRACKER", "COWSLIP_JAILER"] {
        if std::env::var_os(name).is_none() {
            eprintln!("SKIPPED: {name} names no program; no package has one");
            return None;
        }
    }
    let setup = Setup {
        machine: machine.to_owned(),
        ..Setup::default()
    };
    Some(Instance::ready(setup, Kernel::Guest))
}

/// The main job: run, checkpoint, fork two at once, pause, resume, an engine that is killed, stop, start.
fn whole_life(machine: &str) {
    let Some(host) = instance(machine) else {
        return;
    };
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
    let _ = host.say("checkpoint create one --name after").ok();
    let _ = host.say("stop one").ok();
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "later");
    let all: Vec<String> = forks.iter().map(|fork| fork.name.to_string()).collect();
    let _ = host.say(&format!("rm --force one {}", all.join(" "))).ok();
    let _ = host.say("checkpoint rm point after").ok();
    host.assert_only(&files);
}

#[test]
fn a_sandbox_in_direct_mode_has_its_whole_life() {
    // covers R30 R32 R46
    whole_life(DIRECT);
}

#[test]
fn a_sandbox_in_a_jail_has_its_whole_life() {
    // covers R9 R30 R32 R46 R49
    whole_life(JAIL);
}
