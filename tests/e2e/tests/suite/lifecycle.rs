//! Pause, resume, stop, start, time to live, and ends of a guest's own making.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use cowslip_e2e::{Backend, Instance, Kernel, Setup};
use cowslip_model::api::{Event, Info, Sandbox};
use cowslip_model::{MonitorKind, SandboxState};

fn host(backend: Backend) -> Instance {
    let setup = Setup {
        backend,
        ..Setup::default()
    };
    Instance::ready(setup, Kernel::Guest)
}

/// State that only lives in memory: a process, and what it counts.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n >/tmp/n; sleep 0.1; done";
/// Waits until the counter goes on, and gives where it was.
const COUNTS_ON: &str = "while a=$(cat /tmp/n); [ -z \"$a\" ]; do sleep 0.1; done; \
    while b=$(cat /tmp/n); [ \"${b:-0}\" -le \"$a\" ]; do sleep 0.1; done; echo $a";

fn paused_and_resumed(backend: Backend) {
    // covers R31 R32 R38
    let host = host(backend);
    let _ = host.say("run -d --name one box -- sh -c").arg(COUNTER).ok();
    let _ = host.sh("one", "echo unsynced >/root/f").ok();
    let count = || host.sh("one", COUNTS_ON).ok().parse::<u64>().unwrap();
    let mut counted = count();
    for round in 0..2 {
        let _ = host.say("pause one").ok();
        assert_eq!(
            host.sandbox("one").state,
            SandboxState::Paused,
            "round {round}"
        );
        assert!(
            host.machines().is_empty(),
            "a paused sandbox holds no memory"
        );
        host.say("exec one -- true")
            .run()
            .refused(&["\"one\"", "paused", "cowslip resume one"]);
        if round == 1 {
            // An engine that ends and one that comes up between do not matter.
            let _ = host.say("serve --stop").ok();
        }
        let _ = host.say("resume one").ok();
        let now = count();
        assert!(now >= counted, "round {round}: the process lost its memory");
        counted = now;
        assert_eq!(host.sh("one", "cat /root/f").ok(), "unsynced");
        // The same sandbox, not a sibling of it.
        assert_eq!(host.sh("one", "hostname").ok(), "one");
    }
    assert_eq!(host.sh("one", "cat /root/f").ok(), "unsynced");

    // A paused sandbox is stopped by giving its memory up, and starts from its disk.
    let _ = host.sh("one", "echo kept >/root/g; sync").ok();
    let _ = host.say("pause one").ok();
    let _ = host.say("stop one").ok();
    assert_eq!(host.sandbox("one").state, SandboxState::Stopped);
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/g").ok(), "kept");
    let _ = host.say("pause one").ok();
    let _ = host.say("rm one").ok();
    assert_eq!(host.sandboxes(), [""; 0]);
}

#[test]
fn pause_and_resume_on_qcow2() {
    paused_and_resumed(Backend::Qcow2);
}

#[test]
fn pause_and_resume_on_copies() {
    paused_and_resumed(Backend::Copy);
}

/// A resume that fails leaves the sandbox paused, to be resumed again.
#[test]
fn a_failed_resume_can_be_tried_again() {
    // covers R32
    let host = host(Backend::Qcow2);
    let _ = host.say("run -d --name one box -- sh -c").arg(COUNTER).ok();
    let _ = host.sh("one", COUNTS_ON).ok();
    let _ = host.say("pause one").ok();
    let _ = host.say("serve --stop").ok();
    let files = host.files();
    // A monitor that tells its version and then does not start.
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (which, program) = match (
        variable("COWSLIP_TEST_VMM"),
        variable("COWSLIP_TEST_ISOLATION"),
    ) {
        (vmm, isolation) if vmm == "firecracker" && isolation == "direct" => {
            ("COWSLIP_FIRECRACKER", variable("COWSLIP_FIRECRACKER"))
        }
        (vmm, _) if vmm == "firecracker" => ("COWSLIP_JAILER", variable("COWSLIP_JAILER")),
        _ => ("COWSLIP_QEMU", "qemu-system-x86_64".to_owned()),
    };
    let broken = host.scratch().join("monitor");
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exec {program} --version\nexit 1\n");
    fs::write(&broken, script).unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let engine = |words: &str| host.say(words).env(which, broken.to_str().unwrap());
    for _ in 0..2 {
        engine("resume one").run().refused(&[]);
        assert_eq!(host.sandbox("one").state, SandboxState::Paused);
    }
    assert_eq!(host.files(), files, "a failed resume left something");
    host.assert_agreement();
    let _ = host.say("serve --stop").ok();
    let _ = host.say("resume one").ok();
    let _ = host.sh("one", COUNTS_ON).ok();
}

#[test]
fn the_monitor_of_a_sandbox_that_asks_for_none_is_what_info_says() {
    let setup = Setup {
        machine: "vmm = \"auto\"".to_owned(),
        ..Setup::default()
    };
    let host = Instance::ready(setup, Kernel::Guest);
    let _ = host.say("run -d --name one box").ok();
    let info: Info = host.say("info").json();
    let (named, reason) = (info.monitor.unwrap(), info.monitor_reason);
    let is_firecracker = host.sandbox("one").vmm == MonitorKind::Firecracker;
    assert_eq!(named.starts_with("firecracker "), is_firecracker, "{named}");
    assert!(is_firecracker || reason.contains("Firecracker"), "{reason}");
    assert!(info.backend != "qcow2" || !is_firecracker, "{reason}");
    let _ = host.say("rm --force one").ok();
}

#[test]
fn stop_is_graceful_and_start_finds_the_disk() {
    // covers R36 R44
    let host = host(Backend::Qcow2);
    let _ = host.say("run -d --name one box").ok();
    let _ = host.sh("one", "echo unsynced >/root/f").ok();
    let _ = host.say("stop one").ok();
    assert!(host.machines().is_empty());
    host.say("exec one -- true")
        .run()
        .refused(&["\"one\"", "stopped", "cowslip start one"]);
    host.say("pause one")
        .run()
        .refused(&["cannot pause sandbox \"one\": it is stopped"]);
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "unsynced");
    host.say("rm one")
        .run()
        .refused(&["\"one\"", "running", "rm --force one"]);

    // A guest that powers itself off is stopped; one that resets itself, or panics, has failed.
    let follow = host.follow_events();
    let _ = host.say("exec one -- poweroff -f").run().exits(125);
    follow.wait_for("\"sandbox.stopped\",\"id\"");
    let _ = host.say("start one").ok();
    let follow = host.follow_events();
    let _ = host.say("exec one -- reboot -f").run().exits(125);
    if std::env::var("COWSLIP_TEST_VMM").as_deref() == Ok("firecracker") {
        // There a reset is how every guest shuts down.
        follow.wait_for("\"sandbox.stopped\",\"id\"");
        return;
    }
    follow.wait_for("\"sandbox.failed\"");
    let failed = host.sandbox("one");
    assert_eq!(failed.state, SandboxState::Failed);
    let reason = failed.reason.unwrap_or_default();
    assert!(reason.contains("reset itself"), "{reason}");
    host.say("exec one -- true")
        .run()
        .refused(&["\"one\"", "failed", "cowslip start one"]);
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "unsynced");
    drop(follow);
}

#[test]
fn a_time_to_live_ends_a_sandbox_and_only_that_one() {
    // covers R35
    let host = host(Backend::Qcow2);
    let before = host.files();
    let follow = host.follow_events();
    let made: Sandbox = host.say("run -d --ttl 3s --name brief box").json();
    assert!(made.expires_at.is_some());
    follow.wait_for(&format!("\"sandbox.removed\",\"id\":\"{}\"", made.id));
    host.assert_only(&before);
    // A later one of the same name is not that one.
    let _ = host.say("create --ttl 3s --name brief box").ok();
    let _ = host.say("rm brief").ok();
    let later: Sandbox = host.say("create --name brief box").json();
    let other: Sandbox = host.say("create --ttl 3s --name other box").json();
    follow.wait_for(&format!("\"sandbox.removed\",\"id\":\"{}\"", other.id));
    assert_eq!(host.sandbox("brief").id, later.id);
    drop(follow);
}

#[test]
fn a_time_to_live_may_pause_or_stop_instead() {
    // covers R35
    let host = host(Backend::Qcow2);
    let before = host.files();
    let follow = host.follow_events();
    for (name, how, event) in [
        ("one", "pause", "sandbox.paused"),
        ("two", "stop", "sandbox.stopped"),
    ] {
        let call = format!("run -d --ttl 6s --on-expiry {how} --name {name} box");
        let made: Sandbox = host.say(&call).json();
        let _ = host
            .sh(name, "echo kept >/root/f; echo kept >/run/g; sync")
            .ok();
        follow.wait_for(&format!("\"{event}\",\"id\":\"{}\"", made.id));
    }
    assert_eq!(host.sandbox("two").state, SandboxState::Stopped);
    let _ = host.say("resume one").ok();
    assert_eq!(host.sh("one", "cat /root/f /run/g").ok(), "kept\nkept");
    assert!(
        host.sandbox("one").expires_at.is_some(),
        "its time begins anew"
    );
    host.say("run --rm --ttl 9s --on-expiry pause box -- true")
        .run()
        .refused(&["--on-expiry"]);
    host.say("run --rm --on-expiry pause box -- true")
        .run()
        .refused(&["--ttl"]);
    let _ = host.say("rm --force one two").ok();
    host.assert_only(&before);
}

#[test]
fn run_ends_with_its_client_or_its_command() {
    // covers R34
    let host = host(Backend::Qcow2);
    let before = host.files();
    // The client goes while the command runs.
    let run = host
        .say("run --rm box -- sh -c")
        .arg("echo up; exec sleep 1000")
        .start();
    run.wait_for("up");
    let follow = host.follow_events();
    drop(run);
    follow.wait_for("\"sandbox.removed\"");
    drop(follow);
    host.assert_only(&before);

    // Without --rm the sandbox stays, stopped, with its log and its exit code.
    let _ = host
        .say("run --name kept box -- sh -c")
        .arg("echo said; echo bad >&2; exit 3")
        .run()
        .exits(3);
    let kept = host.sandbox("kept");
    assert_eq!(
        (kept.state, kept.exit_code),
        (SandboxState::Stopped, Some(3))
    );
    // Two pipes have no common order.
    let log = host.say("logs kept").ok();
    assert_eq!(log.lines().collect::<BTreeSet<_>>(), ["bad", "said"].into());
    let _ = host.say("rm kept").ok();

    // A removal while it boots ends the boot.
    let follow = host.follow_events();
    let run = host.say("run --name booting box -- true").start();
    follow.wait_for("\"name\":\"booting\"");
    let _ = host.say("rm --force booting").ok();
    let done = run.wait();
    assert_eq!(done.code, 125, "{done}");
    drop(follow);
    host.assert_only(&before);
}

/// A guest's console and its main command's output are bounded on the host's disk.
#[test]
fn logs_are_followed_and_bounded() {
    let setup = Setup {
        // A serial port is slow where a byte of it is an exit from the guest.
        machine: "console_bound = 16384\nlog_bound = 65536".to_owned(),
        ..Setup::default()
    };
    let host = Instance::ready(setup, Kernel::Guest);
    let _ = host
        .say("run -d --name loud box -- sh -c")
        .arg("echo first; while [ ! -e /go ]; do sleep 0.1; done; yes loud | head -c 300000; echo last; sleep 1000")
        .ok();
    let follow = host.say("logs --follow loud").start();
    follow.wait_for("first");
    let _ = host
        .sh(
            "loud",
            "yes console | head -c 40000 >/dev/console; touch /go",
        )
        .ok();
    follow.wait_for("last");
    drop(follow);
    let sandbox = host.sandbox("loud");
    let directory = host.state().join("sandboxes").join(sandbox.id.to_string());
    for (log, bound) in [("main.log", 65536), ("console.log", 16384)] {
        let length = fs::metadata(directory.join(log)).unwrap().len();
        assert!(
            (1..=2 * bound).contains(&length),
            "{log} has {length} bytes"
        );
    }
    assert!(host.say("logs loud").ok().ends_with("last"));
    let console = host.say("logs --console loud").ok();
    assert!(console.contains("console"), "{console:?}");
    let events: Vec<String> = host
        .say("events --json")
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    let events: Vec<Event> = events
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(events.iter().any(|event| event.kind == "sandbox.started"));
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq));
}

/// A root file system with nothing but one static program is a sandbox all the same.
#[test]
fn one_static_program_is_enough() {
    let host = Instance::new();
    host.import_kernel(Kernel::Guest);
    host.import("app", cowslip_e2e::one_program_tar());
    let run = [
        "run",
        "--rm",
        "app",
        "--",
        "/busybox",
        "sh",
        "-c",
        "echo from nothing; exit 4",
    ];
    let done = host.call(run).run().exits(4);
    assert_eq!(done.text(), "from nothing");
    let _ = host.say("run -d --name one app").ok();
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("fork point --name two").ok();
    let call = ["exec", "two", "--", "/busybox", "hostname"];
    assert_eq!(host.call(call).ok(), "two");
}

/// Who may use the API may not give up what the host's owner asked for.
#[test]
fn less_isolation_than_configured_is_refused() {
    let setup = Setup {
        machine: "isolation = \"jail\"".to_owned(),
        ..Setup::default()
    };
    let host = Instance::ready(setup, Kernel::Guest);
    let files = host.files();
    for call in [
        "create --vmm firecracker --isolation direct --name one box",
        "run --isolation direct --name one box -- true",
    ] {
        host.say(call)
            .run()
            .refused(&["in a jail only", "isolation = \"direct\""]);
    }
    host.say("create --vmm xen --name one box").run().exits(125);
    let _ = host
        .say("create --vmm qemu --isolation jail --name one box")
        .ok();
    let one: Vec<Sandbox> = host.say("inspect one").json();
    assert_eq!((one[0].vmm, one[0].isolation), (MonitorKind::Qemu, None));
    let _ = host.say("rm one").ok();
    host.assert_only(&files);
}

#[test]
fn a_disk_is_as_fast_as_it_may_be() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let files = host.files();
    for (refused, why) in [
        ("create --disk-iops 0 box", "0 is not in"),
        ("create --disk-bandwidth 5 box", "too little"),
        (
            "create --vmm qemu --cpu-template T2 box",
            "only Firecracker",
        ),
        ("create --vmm firecracker --cpus 33 box", "1 to 32"),
        ("create --cpu-template ./none box", "./none"),
    ] {
        host.say(refused).run().refused(&[why]);
    }
    let _ = host.say("run -d --disk-bandwidth 1m --name one box").ok();
    // Five mebibytes; one may be saved up.
    let seconds = |sandbox: &str| -> f64 {
        let script = "read a b </proc/uptime; dd if=/dev/zero of=/root/f bs=64k count=80 conv=fsync 2>/dev/null; \
                      read c d </proc/uptime; echo $a $c";
        let said = host.sh(sandbox, script).ok();
        let (begun, ended) = said.split_once(' ').unwrap();
        ended.parse::<f64>().unwrap() - begun.parse::<f64>().unwrap()
    };
    let took = seconds("one");
    assert!(took > 3.0, "{took} s for 5 MiB with 1 MiB a second");
    // A fork has the limits of what it was forked from.
    let _ = host.say("checkpoint create one --name point").ok();
    let fork: Vec<Sandbox> = host.say("fork point --name two").json();
    assert_eq!(
        fork[0].disk_limits.bandwidth.map(|limit| limit.bytes()),
        Some(1 << 20)
    );
    let took = seconds("two");
    assert!(
        took > 3.0,
        "{took} s for 5 MiB with 1 MiB a second, in a fork"
    );
    let _ = host.say("rm --force one two").ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&files);
}

#[test]
fn where_the_time_of_a_start_went_is_told() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("create --name one box").ok();
    let names = |sandbox: &str| {
        let call = format!("inspect --timings {sandbox}");
        let found: serde_json::Value = host.say(&call).json();
        let phases = found[0]["phases"].as_array().unwrap().clone();
        let name = |phase: &serde_json::Value| phase["name"].as_str().unwrap().to_owned();
        phases.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names("one"), [""; 0], "it was never started");
    let _ = host.say("start one").ok();
    let booted = [
        "look up",
        "directories",
        "network",
        "disk",
        "monitor",
        "guest",
    ];
    assert_eq!(names("one"), booted);
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("fork point --name two").ok();
    let restored = [
        "look up",
        "directories",
        "network",
        "disk",
        "monitor",
        "resume",
        "guest",
    ];
    assert_eq!(names("two"), restored);
    let one: Vec<Sandbox> = host.say("inspect one").json();
    let whole: u64 = one[0].phases.iter().map(|phase| phase.us).sum();
    assert!(
        one[0].phases.iter().all(|phase| phase.us < whole),
        "{one:?}"
    );
    let table = host.say("inspect --timings one two").ok();
    assert_eq!(table.matches("together").count(), 2, "{table}");
}
