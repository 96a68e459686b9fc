//! Sandboxes in Firecracker, in a jail and without one, on devices.

use std::collections::BTreeSet;

use cowslip_e2e::{Backend, Instance, Kernel, Setup};
use cowslip_model::api::{Checkpoint, Info, Sandbox};
use cowslip_model::{Isolation, MonitorKind};

pub(crate) const JAIL: &str = "vmm = \"firecracker\"";
const DIRECT: &str = "vmm = \"firecracker\"\nisolation = \"direct\"";

/// An instance that uses Firecracker; none, told loudly, where there is none.
pub(crate) fn instance(machine: &str) -> Option<Instance> {
    instance_on(Backend::Qcow2, machine)
}

fn instance_on(backend: Backend, machine: &str) -> Option<Instance> {
    for name in ["COWSLIP_FIRECRACKER", "COWSLIP_JAILER"] {
        if std::env::var_os(name).is_none() {
            eprintln!("SKIPPED: {name} names no program; no package has one");
            return None;
        }
    }
    let setup = Setup {
        backend,
        machine: machine.to_owned(),
        ..Setup::default()
    };
    Some(Instance::ready(setup, Kernel::Guest))
}

/// The main job: run, checkpoint, fork two at once, pause, resume, an engine that is killed, stop, start.
fn whole_life(host: Option<Instance>) {
    let Some(host) = host else { return };
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
    whole_life(instance(DIRECT));
}

#[test]
fn a_sandbox_in_a_jail_has_its_whole_life() {
    // covers R9 R30 R32 R46 R49
    whole_life(instance(JAIL));
}

/// A disk that is a file belongs to the user of its jail.
#[test]
fn a_sandbox_in_a_jail_lives_on_a_copy_too() {
    whole_life(instance_on(Backend::Copy, JAIL));
}

/// What a jailed Firecracker has of the host: a root of its own with nothing but what it needs, a user of
/// its own, no privileges, and no mount that the host sees.
#[test]
fn a_jail_holds_what_a_machine_needs_and_nothing_else() {
    // covers R9 R49
    let Some(host) = instance(JAIL) else { return };
    // Of a sandbox's network the host has the name: a namespace on a file, and nothing in it.
    let mounts = || {
        let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let others = all.lines().filter(|line| !line.contains(" - nsfs nsfs "));
        others.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = mounts();
    for name in ["one", "two"] {
        let _ = host
            .say(&format!("run -d --name {name} --memory 128M box"))
            .ok();
    }
    assert_eq!(mounts(), before, "no mount of a jail is the host's");
    let mut users = BTreeSet::new();
    for pid in host.machines() {
        let pid = pid.as_raw_nonzero();
        let proc = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        let status = proc("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap()
                .split_whitespace()
                .next()
                .unwrap_or("")
                .to_owned()
        };
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("CapEff:"), "0000000000000000");
        let uid: u32 = field("Uid:").parse().unwrap();
        assert!(uid >= 2_000_000 && users.insert(uid), "{uid}");
        assert_eq!(field("Groups:"), "", "{status}");
        let listed = |path: &str| {
            let entries = std::fs::read_dir(format!("/proc/{pid}/root/{path}")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        let names = |words: &str| words.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
        let mut root = listed("");
        root.retain(|name| !name.ends_with(".pid"));
        assert_eq!(root, names("dev exchange firecracker initramfs kernel run"));
        assert_eq!(
            listed("run/cowslip/self"),
            names("api monitor.log rootfs vsock")
        );
        assert_eq!(listed("exchange"), BTreeSet::new());
        let cgroup = proc("cgroup");
        let group = cgroup.trim().strip_prefix("0::/").unwrap();
        assert!(
            proc("cmdline").contains(group),
            "{group}: the mark is its name"
        );
        let limit = |name: &str| {
            let file = format!("/sys/fs/cgroup/{group}/{name}");
            std::fs::read_to_string(file).unwrap().trim().parse::<u64>()
        };
        assert_eq!(limit("memory.max").unwrap(), (128 << 20) + (1 << 30));
        assert_eq!(limit("pids.max").unwrap(), 257);
        let inside = proc("mountinfo");
        assert!(!inside.contains(" / / "), "the host's root: {inside}");
        let limits = proc("limits");
        let files = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        assert!(files.unwrap().contains(" 1024 "), "{limits}");
    }
    assert_eq!(users.len(), 2);
    let _ = host.say("rm --force one two").ok();
}

/// A checkpoint that was taken in one mode is restored in the other, and its children go on there.
#[test]
fn checkpoints_cross_between_jail_and_direct_mode() {
    let Some(host) = instance(DIRECT) else { return };
    let _ = host.say("run -d --name one --memory 128M box").ok();
    let _ = host.sh("one", "echo direct >/run/g").ok();
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("rm --force one").ok();
    host.configure_machine(JAIL);
    let _ = host.say("fork point --name two").ok();
    assert_eq!(host.sh("two", "cat /run/g").ok(), "direct");
    let _ = host.sh("two", "echo jailed >/run/g").ok();
    let _ = host.say("checkpoint create two --name other").ok();
    let _ = host.say("pause two").ok();
    host.configure_machine(DIRECT);
    let _ = host.say("resume two").ok();
    let _ = host.say("fork other --name three").ok();
    for name in ["two", "three"] {
        assert_eq!(host.sh(name, "cat /run/g").ok(), "jailed");
    }
    let _ = host.say("rm --force two three").ok();
    let _ = host.say("checkpoint rm other").ok();
    let _ = host.say("checkpoint rm point").ok();
}

/// Without a word it is Firecracker where that can run, and QEMU where it cannot or has not what is asked for.
#[test]
fn a_sandbox_that_asks_for_no_monitor_gets_firecracker() {
    let Some(host) = instance("vmm = \"auto\"") else {
        return;
    };
    let monitor = |words: &str| {
        let run = format!("run -d --name one --memory 128M {words} box");
        let _ = host.say(&run).ok();
        let _ = host.sh("one", "true").ok();
        let found = host.sandbox("one");
        let _ = host.say("rm --force one").ok();
        (found.vmm, found.isolation)
    };
    let jailed = (MonitorKind::Firecracker, Some(Isolation::Jail));
    assert_eq!(monitor(""), jailed);
    let info: Info = host.say("info").json();
    let named = info.monitor.unwrap();
    assert!(named.starts_with("firecracker "), "{named}");
    assert!(
        info.monitor_reason.contains("boot on KVM"),
        "{}",
        info.monitor_reason
    );
    assert_eq!(monitor("--vmm qemu"), (MonitorKind::Qemu, None));
    assert_eq!(monitor("--network user"), (MonitorKind::Qemu, None));

    host.kill_engine();
    let lacking = |words: &str| host.say(words).env("COWSLIP_JAILER", "/no/jailer");
    let _ = lacking("run -d --name two --memory 128M box").ok();
    assert_eq!(host.sandbox("two").vmm, MonitorKind::Qemu);
    let info: Info = host.say("info").json();
    assert!(
        info.monitor_reason.contains("/no/jailer"),
        "{}",
        info.monitor_reason
    );
    let _ = host.say("rm --force two").ok();
}

/// Every sandbox has the monitor it asked for, and a checkpoint of one is for no other.
#[test]
fn monitors_are_chosen_by_the_sandbox() {
    let Some(host) = instance(DIRECT) else { return };
    for (name, words) in [
        ("plain", "--vmm qemu"),
        ("jailed", "--isolation jail"),
        ("direct", "--isolation direct"),
    ] {
        let run = format!("run -d --name {name} {words} --memory 128M box");
        let _ = host.say(&run).ok();
    }
    for (name, vmm, isolation) in [
        ("plain", MonitorKind::Qemu, None),
        ("jailed", MonitorKind::Firecracker, Some(Isolation::Jail)),
        ("direct", MonitorKind::Firecracker, Some(Isolation::Direct)),
    ] {
        let _ = host.sh(name, "echo hello >/run/g").ok();
        let _ = host
            .say(&format!("checkpoint create {name} --name of-{name}"))
            .ok();
        let found: Vec<Sandbox> = host.say(&format!("inspect {name}")).json();
        assert_eq!((found[0].vmm, found[0].isolation), (vmm, isolation));
        let fork: Vec<Sandbox> = host
            .say(&format!("fork of-{name} --name fork-{name}"))
            .json();
        assert_eq!((fork[0].vmm, fork[0].isolation), (vmm, isolation));
        assert_eq!(host.sh(&format!("fork-{name}"), "cat /run/g").ok(), "hello");
        let _ = host.say(&format!("rm --force {name} fork-{name}")).ok();
    }
    host.configure_machine(JAIL);
    host.say("fork of-direct --isolation direct")
        .run()
        .refused(&["in a jail only"]);
    for name in ["plain", "jailed", "direct"] {
        let _ = host.say(&format!("checkpoint rm of-{name}")).ok();
    }
}
