//! The main job with guests whose disks are devices.

use std::process::Command;

use cowslip_e2e::{Instance, Kernel, Setup, box_tar};
use cowslip_model::SandboxState;
use cowslip_model::api::{Checkpoint, Diff, Sandbox, Template};

use crate::commands::{Mapped, said};

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
        disk: Some("100m".to_owned()),
        ..Setup::default()
    });
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
    host.resize_disk("2g");
    let _ = host.say("start one").ok();
    assert_eq!(host.sh("one", "cat /root/f").ok(), "kept");
    let _ = host.say("rm --force one").ok();
}

/// A writer that never rests is checkpointed again and again. The disk of every checkpoint is whole, and
/// holds what was written up to one instant; so does the memory of a fork.
#[test]
fn fifty_checkpoints_of_a_writing_guest_are_each_of_one_instant() {
    // covers R24 R26 R27
    const CHECKPOINTS: usize = 50;
    /// Of so many one is looked at: the machine is emulated.
    const CHECKED: usize = 5;
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let files = host.files();
    let write = "i=0; while :; do i=$((i+1)); echo $i >>/root/log; \
                 [ $((i % 64)) = 0 ] && head -c 65536 /dev/urandom >/root/noise && sync; done";
    let _ = host
        .say("run -d --name one --memory 128M box -- sh -c")
        .arg(write)
        .ok();
    let mut written = 0;
    for index in 0..CHECKPOINTS {
        let _ = host
            .say(&format!("checkpoint create one --name p{index}"))
            .ok();
        if index % CHECKED != 0 {
            continue;
        }
        let template: Template = host.say(&format!("template from p{index} t{index}")).json();
        let image = host
            .state()
            .join("templates")
            .join(template.id.to_string())
            .join("image.ext4");
        let _ = said(Command::new("e2fsck").args(["-f", "-n"]).arg(&image));
        let log = said(
            Command::new("debugfs")
                .args(["-R", "cat /root/log"])
                .arg(&image),
        );
        let lines = counted(&log, index);
        assert!(
            lines >= written,
            "{lines} lines at {index}, {written} before"
        );
        written = lines;
        let _ = host.say(&format!("template rm t{index}")).ok();
    }
    assert!(written > 0);
    // So many layers are merged while it runs.
    let layers = host.say("diff one").json::<Diff>().layers.len();
    assert!(layers < CHECKPOINTS, "{layers} layers");
    // What the guest had not written out yet is in the memory of a fork.
    let _ = host
        .say(&format!("fork p{} --name two", CHECKPOINTS - 1))
        .ok();
    let stop = "kill -STOP $(pidof -s sh) 2>/dev/null; cat /root/log";
    let log = host.say("exec two -- sh -c").arg(stop).ok();
    assert!(counted(&log, CHECKPOINTS) >= written);
    let _ = host.say("rm --force one two").ok();
    for index in 0..CHECKPOINTS {
        let _ = host.say(&format!("checkpoint rm p{index}")).ok();
    }
    host.assert_only(&files);
}

/// A foreign device under the name of a stopped sandbox's layer: its own cannot be made.
fn in_the_way(host: &Instance) -> Mapped {
    let layer = std::fs::read_dir(host.state().join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "cow"))
        .unwrap();
    let layer = layer.file_stem().unwrap().to_str().unwrap().to_owned();
    let instance = std::fs::read_to_string(host.state().join("instance")).unwrap();
    Mapped::new(
        &format!("cowslip-{}-layer-{layer}", instance.trim()),
        "0 8 zero",
    )
}

#[test]
fn a_disk_that_cannot_be_a_device_is_a_copy_only_where_that_is_allowed() {
    // covers R21 R22
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("create --name one box").ok();
    let foreign = in_the_way(&host);
    host.say("start one").run().refused(&["create the device"]);
    drop(foreign);
    let _ = host.say("start one").ok();
    let _ = host.say("rm --force one").ok();
    drop(host);

    let host = Instance::ready(
        Setup {
            storage: "on_dm_failure = \"copy\"".to_owned(),
            ..Setup::default()
        },
        Kernel::Guest,
    );
    let files = host.files();
    let _ = host.say("run -d --name one box").ok();
    let _ = host.sh("one", "echo kept >/root/f; sync").ok();
    let _ = host.say("stop one").ok();
    let foreign = in_the_way(&host);
    let follow = host.follow_events();
    let _ = host.say("start one").ok();
    follow.wait_for("\"sandbox.disk_fallback\"");
    drop(follow);
    let one = host.sandbox("one");
    assert_eq!(one.backend, "copy");
    let why = one.disk_fallback.unwrap();
    assert!(why.contains("create the device"), "{why}");
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("fork point --name two").ok();
    assert_eq!(host.sh("two", "cat /root/f").ok(), "kept");
    assert_eq!(host.sandbox("two").backend, "copy");
    // Others are devices as before.
    let _ = host.say("run -d --name three box").ok();
    assert_eq!(host.sandbox("three").backend, "dm");
    drop(foreign);
    let _ = host.say("rm --force one two three").ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&files);
}

/// How many lines there are: one, two, three, and the last may be a part of one.
fn counted(log: &str, context: usize) -> usize {
    let lines: Vec<&str> = log.lines().collect();
    let whole = lines.len().saturating_sub(1);
    for (index, line) in lines[..whole].iter().enumerate() {
        assert_eq!(*line, (index + 1).to_string(), "at {context}");
    }
    whole
}
