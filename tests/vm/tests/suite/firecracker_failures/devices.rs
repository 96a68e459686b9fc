//! Devices that do not go.

use std::fs::File;

use cowslip_e2e::Instance;
use cowslip_model::SandboxState;
use cowslip_model::api::DoctorReport;

use super::{assert_nothing_but, assert_state, failed, jailed, kept, kept_with_memory, run_one};

/// Opens the device that the machine's disk is: while this is open it cannot be removed.
fn hold_the_disk(host: &Instance) -> File {
    let instance = std::fs::read_to_string(host.state().join("instance")).unwrap();
    let mark = format!("cowslip-{}-disk-", instance.trim());
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    let mut disks = devices.filter(|device| {
        let name = std::fs::read_to_string(device.path().join("dm/name"));
        name.is_ok_and(|name| name.starts_with(&mark))
    });
    let disk = disks.next().unwrap().file_name();
    File::open(std::path::Path::new("/dev").join(disk)).unwrap()
}

#[test]
fn a_disk_that_is_in_use_stays_in_the_ledger_until_it_goes() {
    // covers R8 R12 R18
    let Some(host) = jailed() else { return };
    let files = host.files();
    run_one(&host);
    let held = hold_the_disk(&host);
    host.say("stop one").run().refused(&["in use"]);
    assert!(failed(&host, "one").contains("in use"));
    assert_eq!(host.machines(), []);
    // By its row, which says whose it is: it is told, and left to the sandbox's verbs.
    let report: DoctorReport = host.say("doctor").json();
    let [left] = &report.differences[..] else {
        panic!("{:?}", report.differences);
    };
    assert!(
        left.contains("settle sandbox") && left.contains("in use"),
        "{left}"
    );
    host.say("rm one").run().refused(&["in use"]);
    assert!(failed(&host, "one").contains("in use"));
    drop(held);
    let _ = host.say("start one").ok();
    kept(&host, "one");

    // What was paused is paused, whatever of its machine does not go.
    let _ = host.sh("one", "echo in-memory >/run/g").ok();
    let held = hold_the_disk(&host);
    host.say("pause one").run().refused(&["in use"]);
    assert_state(&host, "one", SandboxState::Paused);
    drop(held);
    let _ = host.say("resume one").ok();
    kept_with_memory(&host, "one");

    let held = hold_the_disk(&host);
    host.say("rm --force one").run().refused(&["in use"]);
    assert!(failed(&host, "one").contains("in use"));
    // Another engine finds the row and what it stands for.
    host.kill_engine();
    host.say("rm one").run().refused(&["in use"]);
    drop(held);
    let _ = host.say("rm one").ok();
    assert_nothing_but(&host, &files);
}
