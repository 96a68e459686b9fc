//! Checkpoints of Firecracker that hold only what changed, and what a guest is shown of its processor.

use cowslip_model::api::{Checkpoint, Sandbox};

use crate::firecracker::{JAIL, instance};

const SUM: &str = "cat /run/a /run/b /run/c 2>/dev/null | sha256sum";

/// Each checkpoint after the first holds what was written since the one before; a fork of any of them has all,
/// whichever of them are gone, and goes on the same way.
#[test]
fn what_changed_is_saved_and_forks_have_all() {
    // covers R41 R42
    let machine = format!("{JAIL}\nmemory_chain = 2");
    let Some(host) = instance(&machine) else {
        return;
    };
    let files = host.files();
    let point = |sandbox: &str, name: &str| -> Checkpoint {
        host.say(&format!("checkpoint create {sandbox} --name {name}"))
            .json()
    };
    let fill = |sandbox: &str, file: &str| {
        let _ = host
            .sh(
                sandbox,
                &format!("head -c 4000000 /dev/urandom >/run/{file}"),
            )
            .ok();
    };
    let _ = host.say("run -d --name one --memory 128M box").ok();
    fill("one", "a");
    fill("one", "b");
    let first = point("one", "first");
    assert_eq!(first.memory_chain, 0);
    // Pages that become zeros are a change as well (R42).
    let _ = host
        .sh(
            "one",
            "head -c 4000000 /dev/zero | dd of=/run/a conv=notrunc 2>/dev/null",
        )
        .ok();
    let second = point("one", "second");
    let second_sum = host.sh("one", SUM).ok();
    host.kill_engine();
    fill("one", "c");
    let third = point("one", "third");
    let third_sum = host.sh("one", SUM).ok();
    assert_eq!((second.memory_chain, third.memory_chain), (1, 2));
    for changed in [&second, &third] {
        assert!(
            changed.memory_used.bytes() * 2 < first.memory_used.bytes(),
            "{} of {}",
            changed.memory_used,
            first.memory_used
        );
    }
    eprintln!(
        "the guest stood still for {:.0} ms with all of its {}, then {:.0} ms with {}, {:.0} ms with {}",
        first.downtime_ms,
        first.memory_used,
        second.downtime_ms,
        second.memory_used,
        third.downtime_ms,
        third.memory_used,
    );
    assert_eq!(point("one", "fourth").memory_chain, 0, "past the limit");
    let _ = host.say("rm --force one").ok();
    let _ = host.say("checkpoint rm first").ok();

    let forks: Vec<Sandbox> = host.say("fork third --name of-third --count 2").json();
    assert_eq!(forks.len(), 2);
    assert_eq!(host.sh("of-third-1", SUM).ok(), third_sum);
    let _ = host.sh("of-third-1", "rm /run/b").ok();
    assert_eq!(
        host.sh("of-third-2", SUM).ok(),
        third_sum,
        "its sibling's memory is its own"
    );
    let _ = host.say("fork second --name of-second").ok();
    assert_eq!(host.sh("of-second", SUM).ok(), second_sum);
    let _ = host.say("checkpoint rm --cascade second").ok();

    // A fork stands on what it was restored from, and goes on doing so after a pause.
    assert_eq!(point("of-third-2", "child").memory_chain, 1);
    let _ = host.say("pause of-third-2").ok();
    let _ = host.say("resume of-third-2").ok();
    let grandchild = point("of-third-2", "grandchild");
    assert_eq!(grandchild.memory_chain, 1);
    let _ = host.say("rm --force of-third-1 of-third-2").ok();
    let _ = host.say("checkpoint rm third child").ok();
    let _ = host.say("fork grandchild --name last").ok();
    assert_eq!(host.sh("last", SUM).ok(), third_sum);
    let _ = host.say("rm --force last").ok();
    let _ = host.say("checkpoint rm fourth grandchild").ok();
    host.assert_only(&files);
}

/// A save takes the connection to the agent from the host's side; the guest keeps what it did not hear the end of.
#[test]
fn a_sandbox_is_reached_after_many_checkpoints() {
    let Some(host) = instance(JAIL) else { return };
    let files = host.files();
    let _ = host.say("run -d --name one --memory 128M box").ok();
    for round in 0..20 {
        let _ = host
            .say(&format!("checkpoint create one --name point-{round}"))
            .ok();
        let _ = host.say("exec one -- test -d /root").ok();
        if round < 19 {
            let _ = host.say(&format!("checkpoint rm point-{round}")).ok();
        }
    }
    let _ = host.say("fork point-19 --name two").ok();
    let _ = host.say("exec two -- test -d /root").ok();
    let _ = host.say("rm --force one two").ok();
    let _ = host.say("checkpoint rm point-19").ok();
    host.assert_only(&files);
}

/// Every bit is passed on but that of the AES instructions.
const WITHOUT_AES: &str = r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
  "modifiers": [{"register": "ecx", "bitmap": "0bxxxxxx0xxxxxxxxxxxxxxxxxxxxxxxxx"}]}]}"#;

#[test]
fn a_guest_is_shown_the_processor_of_its_template() {
    let Some(host) = instance(JAIL) else { return };
    let files = host.files();
    let path = host.scratch().join("template.json");
    std::fs::write(&path, WITHOUT_AES).unwrap();
    let template = format!("--cpu-template {}", path.display());
    for (name, words) in [("all", ""), ("less", template.as_str())] {
        let _ = host
            .say(&format!("run -d --name {name} --memory 128M {words} box"))
            .ok();
    }
    let flags = |sandbox: &str| {
        host.sh(sandbox, "grep -m1 -ow aes /proc/cpuinfo || true")
            .ok()
    };
    assert_eq!((flags("all").as_str(), flags("less").as_str()), ("aes", ""));
    // It is part of what is saved.
    let point: Checkpoint = host.say("checkpoint create less --name point").json();
    assert!(
        point.cpu.is_some() && point.kernel_digest.is_some() && point.template_digest.is_some()
    );
    let fork: Vec<Sandbox> = host.say("fork point --name fork").json();
    assert_eq!(fork[0].cpu_template.as_deref(), Some("custom"));
    assert_eq!(flags("fork"), "");
    // Firecracker itself knows which processors a template of its own is for.
    host.say("run -d --name other --cpu-template C3 box")
        .run()
        .refused(&["CPU"]);
    host.say("run -d --name other --cpu-template C4 box")
        .run()
        .exits(125);
    let _ = host.say("rm --force all less fork other").run();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&files);
}
