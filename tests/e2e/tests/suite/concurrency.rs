//! Many at once.

use cowslip_e2e::{Done, Instance, Kernel, Setup};
use cowslip_model::SandboxState;
use cowslip_model::api::Sandbox;

#[test]
fn creates_removes_and_forks_at_once() {
    // covers R25 R39
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let before = host.files();
    let names: Vec<String> = (0..8).map(|index| format!("box-{index}")).collect();
    let all = |words: &[&str], last: Option<&str>| {
        let started: Vec<_> = names
            .iter()
            .map(|name| {
                let words = words.iter().copied().chain([name.as_str()]).chain(last);
                host.call(words).start()
            })
            .collect();
        started
            .into_iter()
            .map(|one| one.wait())
            .collect::<Vec<Done>>()
    };
    for done in all(&["create", "--name"], Some("box")) {
        let _ = done.ok();
    }
    assert_eq!(host.sandboxes(), names);
    for done in all(&["rm"], None) {
        let _ = done.ok();
    }
    host.assert_only(&before);

    // One name for eight: one gets it.
    let started: Vec<_> = (0..8)
        .map(|_| host.say("create --name same box").start())
        .collect();
    let ended: Vec<Done> = started.into_iter().map(|one| one.wait()).collect();
    let won = ended.iter().filter(|done| done.code == 0).count();
    assert_eq!(won, 1, "{ended:?}");
    for lost in ended.into_iter().filter(|done| done.code != 0) {
        lost.refused(&["the name \"same\" is taken"]);
    }
    let _ = host.say("rm same").ok();

    let _ = host.say("run -d --name source --memory 128M box").ok();
    let _ = host.say("checkpoint create source --name point").ok();
    let _ = host.say("rm --force source").ok();
    let forks: Vec<Sandbox> = host.say("fork point --count 4 --name fork").json();
    let execs: Vec<_> = forks
        .iter()
        .map(|fork| {
            host.sh(
                fork.name.as_str(),
                "hostname; hostname >/root/own; cat /root/own",
            )
            .start()
        })
        .collect();
    for (fork, exec) in forks.iter().zip(execs) {
        assert_eq!(exec.wait().ok(), format!("{0}\n{0}", fork.name));
    }
    let words = ["rm", "--force"]
        .into_iter()
        .chain(forks.iter().map(|fork| fork.name.as_str()));
    let _ = host.call(words).ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&before);
}

#[test]
fn pause_and_rm_of_one_sandbox_at_once() {
    // covers R39
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let before = host.files();
    for round in 0..2 {
        let _ = host.say("run -d --name one box").ok();
        let (first, second) = if round == 0 {
            ("pause one", "rm --force one")
        } else {
            ("rm --force one", "pause one")
        };
        let (first, second) = (host.say(first).start(), host.say(second).start());
        for done in [first.wait(), second.wait()] {
            if done.code != 0 {
                assert_eq!(done.code, 125, "{done}");
                assert!(done.stderr.starts_with("cowslip: "), "{done}");
            }
        }
        assert_eq!(host.sandboxes(), [""; 0], "round {round}");
        host.assert_only(&before);
    }
}

#[test]
fn engines_start_once_and_keep_to_themselves() {
    let here = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = here.say("serve --stop").ok();
    let started: Vec<_> = (0..6).map(|_| here.say("info --json").start()).collect();
    let mut pids: Vec<u32> = started
        .into_iter()
        .map(|one| one.wait().json::<cowslip_model::api::Info>().pid)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 1, "several engines came up: {pids:?}");

    let there = Instance::ready(Setup::default(), Kernel::Guest);
    assert_ne!(here.info().instance, there.info().instance);
    let _ = here.say("run -d --name one box").ok();
    let _ = there.say("run -d --name one box").ok();
    // Recovery and gc of one never touch what is the other's.
    here.kill_engine();
    let _ = here.say("gc").ok();
    let _ = there.say("gc").ok();
    for host in [&here, &there] {
        assert_eq!(host.sandboxes(), ["one"]);
        assert_eq!(host.sandbox("one").state, SandboxState::Running);
        assert_eq!(host.sh("one", "echo yes").ok(), "yes");
        assert_eq!(host.machines().len(), 1);
    }
    let _ = here.say("rm --force one").ok();
    assert_eq!(there.sh("one", "echo yes").ok(), "yes");
}
