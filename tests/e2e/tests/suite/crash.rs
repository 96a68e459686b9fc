//! `kill -9` of the engine in the middle of each verb: after the next command nothing is left that no
//! sandbox owns, running sandboxes answer, and what the verb worked on is usable or gone.
//!
//! A verb's course is told by the changes it makes in the state directory (see [`Changes`]), so the
//! engine is killed at the n-th of them: at steps of the verb, not at times.
//!
//! [`Changes`]: cowslip_e2e::Changes

use std::collections::BTreeSet;
use std::path::PathBuf;

use cowslip_e2e::{Call, Instance, Kernel, Setup};
use cowslip_model::SandboxState;
use cowslip_model::api::Checkpoint;

/// At how many places of each verb.
const PLACES: usize = 4;

/// How many changes `verb` makes when it is left alone.
pub(crate) fn measure(host: &Instance, verb: Call) -> usize {
    let changes = host.changes();
    let running = verb.start();
    let end = running.end();
    let count = changes.wait(usize::MAX, &end);
    let _ = running.wait().ok();
    count
}

/// Kills the engine at the `at`-th change that `verb` makes, and waits for the verb's end.
pub(crate) fn kill_at(host: &Instance, verb: Call, at: usize) -> cowslip_e2e::Done {
    let engine = host.engine().expect("an engine runs");
    let changes = host.changes();
    let running = verb.start();
    let end = running.end();
    changes.wait(at, &end);
    host.kill_engine();
    let done = running.wait();
    // The verb is over, or it says that the engine went; a defect would say something else.
    if done.code != 0 {
        assert!(
            done.stderr.starts_with("cowslip: ") || done.code == 0,
            "at change {at} of engine {engine:?}: {done}"
        );
    }
    done
}

/// The places of a verb that makes `count` changes: the first, the last but one, and some between.
pub(crate) fn places(count: usize) -> BTreeSet<usize> {
    let last = count.saturating_sub(1).max(1);
    (0..PLACES)
        .map(|index| 1 + (last - 1) * index / (PLACES - 1))
        .collect()
}

fn host() -> Instance {
    Instance::ready(Setup::default(), Kernel::Guest)
}

/// A sandbox that must live through everything.
fn with_witness() -> (Instance, BTreeSet<PathBuf>) {
    let host = host();
    let _ = host.say("run -d --name witness box").ok();
    let files = host.files();
    (host, files)
}

fn assert_answers(host: &Instance, sandbox: &str) {
    assert_eq!(
        host.sandbox(sandbox).state,
        SandboxState::Running,
        "{sandbox}"
    );
    assert_eq!(host.sh(sandbox, "echo yes").ok(), "yes");
}

/// Every sandbox but the witness is usable or goes without a trace.
fn assert_sound(host: &Instance, files: &BTreeSet<PathBuf>) {
    host.assert_agreement();
    for name in host.sandboxes() {
        if name == "witness" {
            continue;
        }
        let found = host.sandbox(&name);
        assert_eq!(found.transition, None, "{name} is left in a transition");
        match found.state {
            SandboxState::Running => {}
            SandboxState::Paused => drop(host.call(["resume", &name]).ok()),
            SandboxState::Stopped | SandboxState::Failed => {
                drop(host.call(["start", &name]).ok());
            }
            SandboxState::Creating => panic!("{name} is left half made"),
        }
        assert_answers(host, &name);
        let _ = host.call(["rm", "--force", &name]).ok();
    }
    let checkpoints: Vec<Checkpoint> = host.say("checkpoint ls").json();
    for checkpoint in checkpoints {
        let _ = host
            .call(["checkpoint", "rm", checkpoint.name.as_str()])
            .ok();
    }
    if host.sandboxes() == ["witness"] {
        assert_answers(host, "witness");
    }
    assert_eq!(&host.files(), files);
}

#[test]
fn during_create_and_rm() {
    // covers R3 R8 R13 R48
    let (host, files) = with_witness();
    let count = measure(&host, host.say("create --name new box"));
    for at in places(count) {
        let _ = host.say("rm --force new").run();
        let done = kill_at(&host, host.say("create --name new box"), at);
        let there = host.sandboxes().contains(&"new".to_owned());
        assert!(
            there || done.code != 0,
            "it was said to be done and is not there: {done}"
        );
        assert_sound(&host, &files);
    }
    let _ = host.say("create --name old box").ok();
    let count = measure(&host, host.say("rm old"));
    for at in places(count) {
        let _ = host.say("create --name old box").ok();
        let done = kill_at(&host, host.say("rm old"), at);
        let there = host.sandboxes().contains(&"old".to_owned());
        assert!(
            !there || done.code != 0,
            "it was said to be gone and is there: {done}"
        );
        assert_sound(&host, &files);
    }
}

#[test]
fn during_run() {
    // covers R34 R46
    let host = host();
    let files = host.files();
    let run = || host.say("run -d --name new box");
    let count = measure(&host, run());
    let _ = host.say("rm --force new").ok();
    for at in places(count) {
        let _ = kill_at(&host, run(), at);
        assert_sound(&host, &files);
        assert_eq!(host.machines(), []);
    }
}

#[test]
fn during_checkpoint() {
    // covers R26 R30 R37
    let (host, files) = with_witness();
    let _ = host.say("run -d --name source box").ok();
    let _ = host.sh("source", "echo kept >/root/f").ok();
    let checkpoint = || host.say("checkpoint create source --name point");
    let count = measure(&host, checkpoint());
    let _ = host.say("checkpoint rm point").ok();
    for at in places(count) {
        let done = kill_at(&host, checkpoint(), at);
        // The source goes on as if nothing had been asked, and the checkpoint is whole or not there.
        assert_answers(&host, "source");
        assert_eq!(host.sh("source", "cat /root/f").ok(), "kept");
        let found: Vec<Checkpoint> = host.say("checkpoint ls").json();
        assert!(
            found.len() == 1 || done.code != 0,
            "it was said to be done and is not there: {done}"
        );
        if !found.is_empty() {
            let _ = host.say("fork point --name twin").ok();
            assert_eq!(host.sh("twin", "cat /root/f").ok(), "kept");
            let _ = host.say("rm --force twin").ok();
            let _ = host.say("checkpoint rm point").ok();
        }
        host.assert_agreement();
    }
    assert_sound(&host, &files);
}

#[test]
fn during_fork() {
    // covers R22 R33
    let host = host();
    let files = host.files();
    let _ = host.say("run -d --name source box").ok();
    let _ = host.say("checkpoint create source --name point").ok();
    let _ = host.say("rm --force source").ok();
    let before = host.files();
    let fork = || host.say("fork point --count 2 --name twin");
    let count = measure(&host, fork());
    let _ = host.say("rm --force twin-1 twin-2").ok();
    for at in places(count) {
        let _ = kill_at(&host, fork(), at);
        for name in host.sandboxes() {
            assert_answers(&host, &name);
            let _ = host.call(["rm", "--force", &name]).ok();
        }
        host.assert_only(&before);
    }
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&files);
}

#[test]
fn during_pause_and_resume() {
    // covers R31 R32 R38
    let (host, files) = with_witness();
    let _ = host.say("run -d --name one box").ok();
    let _ = host
        .sh(
            "one",
            "echo kept >/root/f; mkdir /tmp/x; mount -t tmpfs none /tmp/x; echo memory >/tmp/x/f",
        )
        .ok();
    let assert_whole = || {
        let found = host.sandbox("one");
        assert_eq!(found.transition, None);
        match found.state {
            SandboxState::Running => {}
            SandboxState::Paused => drop(host.say("resume one").ok()),
            other => panic!("it is {other}: {:?}", found.reason),
        }
        assert_eq!(host.sh("one", "cat /root/f /tmp/x/f").ok(), "kept\nmemory");
        host.assert_agreement();
    };
    let count = measure(&host, host.say("pause one"));
    let resume_count = measure(&host, host.say("resume one"));
    for at in places(count) {
        let _ = kill_at(&host, host.say("pause one"), at);
        assert_whole();
    }
    for at in places(resume_count) {
        let _ = host.say("pause one").ok();
        let _ = kill_at(&host, host.say("resume one"), at);
        assert_whole();
    }
    assert_sound(&host, &files);
}

#[test]
fn during_stop_and_rm_of_a_running_one() {
    // covers R13 R36 R45
    let host = host();
    let files = host.files();
    let _ = host.say("run -d --name one box").ok();
    let _ = host.sh("one", "echo kept >/root/f; sync").ok();
    let count = measure(&host, host.say("stop one"));
    for at in places(count) {
        let _ = host.say("start one").ok();
        let done = kill_at(&host, host.say("stop one"), at);
        let state = host.sandbox("one").state;
        assert!(
            state == SandboxState::Stopped || done.code != 0,
            "{state}: {done}"
        );
        if state != SandboxState::Running {
            let _ = host.say("start one").ok();
        }
        assert_eq!(host.sh("one", "cat /root/f").ok(), "kept");
        let _ = host.say("stop one").ok();
        host.assert_agreement();
    }
    let _ = host.say("start one").ok();
    let count = measure(&host, host.say("rm --force one"));
    for at in [1, count / 2] {
        let _ = host.say("run -d --name one box").ok();
        let _ = kill_at(&host, host.say("rm --force one"), at);
        assert_sound(&host, &files);
        assert_eq!(host.machines(), []);
    }
}

/// An engine that is killed while nothing is asked of it: the next one adopts what runs.
#[test]
fn running_sandboxes_are_adopted() {
    // covers R46 R50
    let host = host();
    let ticks = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";
    let _ = host.say("run -d --name one box -- sh -c").arg(ticks).ok();
    let _ = host.say("run -d --name two --ttl 1h box").ok();
    let before = [host.sandbox("one"), host.sandbox("two")];
    let run = host
        .say("run --name three box -- sh -c")
        .arg("echo up; exec sleep 1000")
        .start();
    run.wait_for("up");
    host.kill_engine();
    // Whoever waited is told; not by a hang, and not by a success.
    let done = run.wait().exits(125);
    assert!(done.stderr.starts_with("cowslip: "), "{done}");

    for (name, before) in [("one", &before[0]), ("two", &before[1])] {
        assert_answers(&host, name);
        let after = host.sandbox(name);
        assert_eq!(
            (after.id, after.pid, after.expires_at, after.started_at),
            (before.id, before.pid, before.expires_at, before.started_at),
            "{name} is another machine"
        );
    }
    assert_answers(&host, "three");
    // The log goes on, and nothing of it is there twice.
    let follow = host.say("logs --follow one").start();
    let now = host.say("logs one").ok().lines().count();
    follow.wait_for(&format!("tick {}\n", now + 5));
    drop(follow);
    let log = host.say("logs one").ok();
    let whole = log
        .lines()
        .enumerate()
        .all(|(index, line)| line == format!("tick {}", index + 1));
    assert!(whole, "{log}");
    // And once more, with the machine of one of them killed meanwhile.
    host.kill_engine();
    let pid = before[1]
        .pid
        .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
    assert_answers(&host, "one");
    let two = host.sandbox("two");
    assert_eq!(two.state, SandboxState::Failed);
    assert!(two.reason.is_some_and(|reason| !reason.is_empty()));
    let _ = host.say("start two").ok();
    assert_answers(&host, "two");
}
