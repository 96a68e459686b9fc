//! The ledger lost or damaged: the next engine builds it again from the other witnesses.

use std::fs;

use cowslip_e2e::{Instance, Kernel, Setup};
use cowslip_model::SandboxState;
use cowslip_model::api::{Checkpoint, Template};

fn lose_or_damage(harm: impl Fn(&Instance)) {
    // covers R43
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let before = host.files();
    let _ = host.say("run -d --name runs box").ok();
    let _ = host.sh("runs", "echo before >/root/f").ok();
    let _ = host.say("checkpoint create runs --name point").ok();
    let _ = host.say("create --name stopped box").ok();
    let pid = host.sandbox("runs").pid;
    host.kill_engine();
    harm(&host);

    assert_eq!(host.sandboxes(), ["runs", "stopped"]);
    let runs = host.sandbox("runs");
    assert_eq!(
        (runs.state, runs.pid),
        (SandboxState::Running, pid),
        "it was not adopted"
    );
    assert_eq!(host.sh("runs", "cat /root/f").ok(), "before");
    let templates: Vec<Template> = host.say("template ls").json();
    assert!(
        templates
            .iter()
            .any(|one| one.names.iter().any(|name| name.as_str() == "box"))
    );
    let points: Vec<Checkpoint> = host.say("checkpoint ls").json();
    assert_eq!(points.len(), 1);
    let _ = host.say("fork point --name twin").ok();
    assert_eq!(host.sh("twin", "cat /root/f").ok(), "before");
    let _ = host.say("rm --force twin runs stopped").ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&before);
}

#[test]
fn the_database_is_lost() {
    lose_or_damage(|host| {
        for name in ["cowslip.db", "cowslip.db-wal", "cowslip.db-shm"] {
            // The last two are there or not, as the engine left them.
            let _ = fs::remove_file(host.state().join(name));
        }
    });
}

#[test]
fn the_database_is_damaged() {
    lose_or_damage(|host| {
        let path = host.state().join("cowslip.db");
        let length = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    });
}

/// A mirror that is lost or damaged is no loss while the database is there.
#[test]
fn the_mirror_is_lost() {
    // covers R43
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let before = host.files();
    let _ = host.say("run -d --name one box").ok();
    let _ = host.say("run -d --name two box").ok();
    host.kill_engine();
    let mut harmed = 0;
    for entry in fs::read_dir(host.state().join("handles")).unwrap() {
        let path = entry.unwrap().path();
        if harmed == 0 {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, "{ half a").unwrap();
        }
        harmed += 1;
    }
    assert_eq!(harmed, 2);
    for name in ["one", "two"] {
        assert_eq!(host.sh(name, "echo yes").ok(), "yes");
    }
    let _ = host.say("rm --force one two").ok();
    host.assert_only(&before);
}
