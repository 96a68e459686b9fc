//! The main job with guests whose disks are devices.

use cowslip_e2e::{Instance, Kernel, Mounted, Setup, box_tar};
use cowslip_model::SandboxState;
use cowslip_model::api::{Checkpoint, Sandbox};

/// The engine is killed while machines run on devices: the next one adopts them, and nothing is left
/// in the end.
#[test]
fn machines_on_devices_are_adopted() {
    // covers R13 R18 R46
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let files = host.files();
    let _ = host.say("run -d --name one box").ok();
    let _ = host.sh("one", "echo kept >/root/f; sync").ok();
    let point: Checkpoint = host.say("checkpoint create one --name point").json();
    host.kill_engine();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "kept");
    let forks: Vec<Sandbox> = host.say("fork point --name two").json();
    assert_eq!(forks[0].forked_from, Some(point.id));
    assert_eq!(host.sh("two", "cat /root/f").ok(), "kept");
    let _ = host.say("pause two").ok();
    let _ = host.say("resume two").ok();
    assert_eq!(host.sh("two", "cat /root/f").ok(), "kept");
    let _ = host.say("rm --force one two").ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&files);
}

/// Without the low-water mark a guest can fill the host's disk: its machine is ended with the reason,
/// and when there is space its disk is as after a power cut.
#[test]
fn a_guest_whose_disk_broke_has_failed_and_starts_again() {
    // covers R23 R28
    let host = Instance::with(Setup {
        storage: "low_water = 0".to_owned(),
        ..Setup::default()
    });
    std::fs::create_dir(host.state()).unwrap();
    let mount = Mounted::new(host.state(), "100m");
    host.import_kernel(Kernel::Guest);
    host.import("box", box_tar());
    let follow = host.follow_events();
    let _ = host.say("run -d --name one --disk 1G box").ok();
    let _ = host.sh("one", "echo kept >/root/f; sync").ok();
    let fill = host
        .say("exec one -- sh -c")
        .arg("yes full >/root/big")
        .start();
    follow.wait_for("\"sandbox.failed\"");
    drop(fill);
    drop(follow);
    let failed = host.sandbox("one");
    assert_eq!(failed.state, SandboxState::Failed);
    let reason = failed.reason.unwrap();
    assert!(reason.contains("takes no more writes"), "{reason}");
    mount.resize("2g");
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "kept");
    let _ = host.say("rm --force one").ok();
    drop(host);
    drop(mount);
}
