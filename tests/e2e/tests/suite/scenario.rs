//! The main job: import, run, checkpoint, fork; both guest kernels, both backends.

use cowslip_e2e::{Backend, Instance, Kernel, Setup, rootfs_tar};
use cowslip_model::SandboxState;
use cowslip_model::api::{Checkpoint, Sandbox};

/// Counts in its memory and writes where it is; a second line tells that it is the same process.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n >/tmp/count; sleep 0.1; done";

/// What a guest is known by.
const IDENTITY: [&str; 4] = [
    "cat /proc/sys/kernel/random/boot_id",
    "hostname",
    "cat /etc/machine-id",
    "head -c 16 /dev/urandom | od -An -tx1",
];

/// Whether the counter goes on from where it was, told in the guest: no clock of ours is involved.
const COUNTS_ON: &str = "while a=$(cat /tmp/count); [ -z \"$a\" ]; do sleep 0.1; done; \
    while b=$(cat /tmp/count); [ \"${b:-0}\" -le \"$a\" ]; do sleep 0.1; done; echo $a";

fn count(host: &Instance, sandbox: &str) -> u64 {
    host.sh(sandbox, COUNTS_ON).ok().trim().parse().unwrap()
}

/// How far the guest's clock is from ours, in milliseconds; a lower bound, since the answer takes time.
fn clock_error(host: &Instance, sandbox: &str) -> f64 {
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_secs_f64()
    };
    let before = now();
    let theirs: f64 = host.sh(sandbox, "date +%s.%N").ok().parse().unwrap();
    let after = now();
    1000.0 * (before - theirs).max(theirs - after).max(0.0)
}

fn main_job(backend: Backend, kernel: Kernel) {
    // covers R2 R4 R5 R25 R26 R33 R51
    let host = Instance::with(Setup {
        backend,
        ..Setup::default()
    });
    let tar = rootfs_tar();
    let _ = host
        .call(["template", "import", "debian", tar.to_str().unwrap()])
        .ok();
    host.import_kernel(kernel);
    let before = host.files();

    let done = host
        .say("run --rm debian -- sh -c")
        .arg("echo out; echo err >&2; exit 7")
        .run()
        .exits(7);
    assert_eq!(
        (done.text().as_str(), done.stderr.as_str()),
        ("out", "err\n")
    );

    let _ = host
        .say("run -d --name source debian -- sh -c")
        .arg(COUNTER)
        .ok();
    // On disk by a sync, in the page cache only, and in memory.
    let write = "echo synced >/root/a; sync; echo unsynced >/root/b; echo before >/tmp/c";
    let _ = host.sh("source", write).ok();
    let counted = count(&host, "source");
    let point: Checkpoint = host.say("checkpoint create source --name point").json();
    assert_eq!(point.sandbox_name.as_str(), "source");

    let forks: Vec<Sandbox> = host.say("fork point --count 2 --name fork").json();
    let names: Vec<&str> = forks.iter().map(|fork| fork.name.as_str()).collect();
    assert_eq!(names, ["fork-1", "fork-2"]);
    for fork in &names {
        let read = host.sh(fork, "cat /root/a /root/b /tmp/c").ok();
        assert_eq!(read, "synced\nunsynced\nbefore", "{fork}");
        assert!(
            count(&host, fork) >= counted,
            "{fork} lost the process's memory"
        );
        let error = clock_error(&host, fork);
        assert!(error < 50.0, "the clock of {fork} is {error} ms off");
        assert_eq!(host.sh(fork, "hostname").ok(), *fork);
    }
    for command in IDENTITY {
        let mut seen: Vec<String> = ["source", "fork-1", "fork-2"]
            .map(|one| host.sh(one, command).ok())
            .to_vec();
        assert!(
            seen.iter().all(|one| !one.is_empty()),
            "{command}: {seen:?}"
        );
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3, "{command} is the same in siblings: {seen:?}");
    }

    // Each writes for itself.
    for one in ["source", "fork-1", "fork-2"] {
        let _ = host.sh(one, &format!("echo {one} >/root/own; sync")).ok();
    }
    for one in ["source", "fork-1", "fork-2"] {
        assert_eq!(host.sh(one, "cat /root/own").ok(), one);
    }

    // A fork is a sandbox like any other: it can be checkpointed and forked again.
    let _ = host.say("checkpoint create fork-1 --name second").ok();
    let again: Vec<Sandbox> = host.say("fork second --name grandchild").json();
    assert_eq!(again[0].generation, forks[0].generation + 1);
    assert_eq!(
        (again[0].cpus, again[0].memory),
        (forks[0].cpus, forks[0].memory)
    );
    assert_eq!(
        host.sh("grandchild", "cat /root/a /root/own").ok(),
        "synced\nfork-1"
    );
    assert!(count(&host, "grandchild") >= counted);

    assert!(count(&host, "source") >= counted);
    assert_eq!(host.sandbox("source").state, SandboxState::Running);

    host.say("checkpoint rm point")
        .run()
        .refused(&["\"point\"", "fork-1", "fork-2", "--cascade"]);
    let _ = host.say("rm --force source fork-1 fork-2 grandchild").ok();
    let _ = host.say("checkpoint rm point second").ok();
    assert_eq!(host.sandboxes(), [""; 0]);
    host.assert_only(&before);
}

#[test]
fn on_the_guest_kernel_with_qcow2() {
    main_job(Backend::Qcow2, Kernel::Guest);
}

#[test]
fn on_the_guest_kernel_with_copies() {
    main_job(Backend::Copy, Kernel::Guest);
}

#[test]
fn on_the_distributions_kernel_with_qcow2() {
    main_job(Backend::Qcow2, Kernel::Debian);
}

#[test]
fn on_the_distributions_kernel_with_copies() {
    main_job(Backend::Copy, Kernel::Debian);
}
