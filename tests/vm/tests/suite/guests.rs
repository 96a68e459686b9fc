//! The main job with guests whose disks are devices.

use cowslip_e2e::{Instance, Kernel, Setup};
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
