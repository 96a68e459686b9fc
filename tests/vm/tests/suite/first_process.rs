//! An engine that is the machine's first process (R11): `cargo xtask vm --init engine test first_process`.

use cowslip_e2e::{Instance, Kernel, Setup, box_tar};
use cowslip_model::SandboxState;
use cowslip_model::api::Sandbox;
use rustix::process::{Pid, Signal, kill_process};

use crate::commands::only_in_the_test_vm;

/// Whether the first process is an engine; where it is none, that is told loudly.
fn is_engine() -> bool {
    only_in_the_test_vm();
    let is_one = std::env::var_os("COWSLIP_TEST_ENGINE").is_some();
    if !is_one {
        eprintln!("SKIPPED: the first process is no engine: cargo xtask vm --init engine");
    }
    is_one
}

/// The main job, with a machine that dies: its status is known, so nobody else took it.
fn whole_life(host: &Instance, words: &str) {
    let files = host.files();
    let _ = host
        .say(&format!("run -d --name one {words} --memory 128M box"))
        .ok();
    let _ = host
        .sh("one", "echo kept >/root/f; echo in-memory >/run/g; sync")
        .ok();
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.sh("one", "echo later >/root/f; sync").ok();
    let forks: Vec<Sandbox> = host.say("fork point --name two").json();
    assert_eq!(forks.len(), 1);
    assert_eq!(host.sh("two", "cat /root/f /run/g").ok(), "kept\nin-memory");
    let _ = host.say("pause two").ok();
    let _ = host.say("resume two").ok();
    assert_eq!(host.sh("two", "cat /run/g").ok(), "in-memory");
    let _ = host.say("stop one").ok();
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "later");

    let follow = host.follow_events();
    kill(machine(&host.sandbox("one")));
    follow.wait_for("\"sandbox.failed\"");
    drop(follow);
    let one = host.sandbox("one");
    assert_eq!(one.state, SandboxState::Failed);
    let reason = one.reason.unwrap_or_default();
    assert!(reason.contains("signal 9"), "{reason}");
    let _ = host.say("rm --force one two").ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&files);
}

#[test]
fn its_sandboxes_have_their_whole_life() {
    // covers R11
    if !is_engine() {
        return;
    }
    // Everybody's, and emptied when this goes: one test only uses it.
    let host = Instance::of_first_process().unwrap();
    assert_eq!(host.info().pid, engine_of(1), "its engine is a child of it");
    host.import_kernel(Kernel::Guest);
    host.import("box", box_tar());
    whole_life(&host, "--vmm qemu");
    for name in ["COWSLIP_FIRECRACKER", "COWSLIP_JAILER"] {
        if std::env::var_os(name).is_none() {
            eprintln!("SKIPPED: {name} names no program; no package has one");
            return;
        }
    }
    whole_life(&host, "--vmm firecracker");
}

/// Monitors of an engine that was killed are left to the first process, adopted or not.
#[test]
fn monitors_of_other_engines_are_reaped_by_it() {
    // covers R11 R46
    if !is_engine() {
        return;
    }
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    for name in ["one", "two"] {
        let _ = host
            .say(&format!("run -d --name {name} --memory 128M box"))
            .ok();
    }
    let [one, two] = ["one", "two"].map(|name| machine(&host.sandbox(name)));
    host.kill_engine();
    assert_eq!((parent(one), parent(two)), (Some(1), Some(1)));
    kill(one);
    gone(one);
    // Adopted by the next engine, whose child it never becomes.
    assert_eq!(host.sh("two", "echo yes").ok(), "yes");
    assert_eq!(host.sandbox("one").state, SandboxState::Failed);
    assert_eq!(parent(two), Some(1));
    let _ = host.say("rm --force two").ok();
    gone(two);
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "echo yes").ok(), "yes");
    let _ = host.say("rm --force one").ok();
}

fn machine(sandbox: &Sandbox) -> Pid {
    let pid = sandbox.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    pid.unwrap()
}

fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

/// The parent of a process; none: there is no such process.
fn parent(pid: Pid) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

/// Waits until not even a zombie is there.
fn gone(pid: Pid) {
    let begun = std::time::Instant::now();
    while parent(pid).is_some() {
        assert!(begun.elapsed() < cowslip_e2e::PATIENCE, "nobody reaps it");
        std::thread::yield_now();
    }
}

/// The engine that runs as a child of this process.
fn engine_of(init: u32) -> u32 {
    let state = std::env::var("COWSLIP_TEST_ENGINE").unwrap();
    let pid: u32 = std::fs::read_to_string(format!("{state}/lock"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(
        Pid::from_raw(pid.cast_signed()).and_then(parent),
        Some(init)
    );
    pid
}
