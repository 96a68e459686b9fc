//! The machine is what the other tests take it for: its device-mapper, its loop devices, its KVM.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bench::Bench;
use crate::commands::{Mapped, dmsetup, losetup, only_in_the_test_vm, said};
use cowslip_e2e::Kernel;
use cowslip_host::{Loop, LoopSpec};
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{LedgerError, Owner};
use cowslip_model::{DiskFormat, LayerId};

const MIB: usize = 1 << 20;

#[test]
fn device_mapper_has_every_target_that_we_use_and_those_of_power_cuts() {
    only_in_the_test_vm();
    let listed = dmsetup(&["targets"]);
    let found: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let wanted = [
        "linear",
        "snapshot",
        "snapshot-origin",
        "zero",
        "flakey",
        "log-writes",
    ];
    for target in wanted {
        assert!(found.contains(&target), "no target {target}: {found:?}");
    }
}

#[test]
fn a_snapshot_of_dmsetup_keeps_its_origin_and_leaves_nothing() {
    only_in_the_test_vm();
    let directory = tempfile::tempdir().unwrap();
    let [origin, store] = ["origin", "store"].map(|name| directory.path().join(name));
    fs::write(&origin, vec![7; 8 * MIB]).unwrap();
    fs::write(&store, vec![0; 16 * MIB]).unwrap();
    let before = fs::read(&origin).unwrap();
    let name = format!("vm-snapshot-{}", std::process::id());
    {
        let attach = |more: &[&str], path: &Path| {
            let words = ["--find", "--show"];
            losetup(&[&words[..], more, &[path.to_str().unwrap()]].concat())
        };
        let origin = attach(&["--read-only"], &origin);
        let cow = attach(&[], &store);
        let sectors = 8 * MIB / 512;
        let snapshot = Mapped::new(&name, &format!("0 {sectors} snapshot {origin} {cow} P 8"));
        // Detached once the device lets go of them: what is left else would be seen below.
        let _ = losetup(&["--detach", &origin, &cow]);
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(snapshot.node())
            .unwrap();
        device.write_all_at(&[9; 4096], 4096).unwrap();
        device.sync_all().unwrap();
        let mut read = vec![0; 3 * 4096];
        device.read_exact_at(&mut read, 0).unwrap();
        let expected = [[7; 4096], [9; 4096], [7; 4096]].concat();
        assert_eq!(read, expected);
        // A lone exception, its area and the header: three chunks.
        let status = dmsetup(&["status", &name]);
        assert!(status.contains("24/"), "{status}");
    }
    assert_eq!(fs::read(&origin).unwrap(), before);
    assert!(!dmsetup(&["ls"]).contains(&name));
    let left = losetup(&["--list", "--noheadings", "--output", "BACK-FILE"]);
    let of_this_test = directory.path().to_str().unwrap();
    assert!(!left.contains(of_this_test), "{left}");
}

#[test]
fn our_loop_device_is_configured_at_once_and_goes_with_its_last_user() {
    let bench = Bench::new();
    let layer = LayerId::from_bits(3);
    let path = bench.site.layout.layer(layer, DiskFormat::Snapshot);
    fs::write(&path, vec![5; MIB]).unwrap();
    let owner = Owner::Layer(layer);
    let spec = LoopSpec {
        path: path.clone(),
        read_only: false,
        flushes: false,
    };
    let slot = bench.site.ledger.reserve::<Loop>(owner, spec, &[]).unwrap();
    // By `LOOP_CONFIGURE`: there is no moment at which it has its file and not yet its flags.
    let (held, hold) = bench.site.host.attach_loop(slot).unwrap();
    let index = held.identity().index;
    held.settle();
    let queue = |name: &str| {
        let file = format!("/sys/block/loop{index}/{name}");
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    assert_eq!(queue("loop/backing_file"), path.to_str().unwrap());
    assert_eq!(queue("loop/autoclear"), "1");
    assert_eq!(queue("queue/write_cache"), "write through");
    let mut bytes = vec![0; MIB];
    let mut device = File::open(format!("/dev/loop{index}")).unwrap();
    device.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, vec![5; MIB]);
    drop(device);

    let rows = bench
        .site
        .ledger
        .read::<_, LedgerError>(|tx| tx.handles_of(owner));
    let row = rows.unwrap().remove(0);
    let probe = || bench.site.host.probe(&row).unwrap();
    assert_eq!(probe(), Presence::Present);
    drop(hold);
    // The kernel detaches it by itself; releasing only makes sure, and waits until that is seen.
    bench.site.host.release(&row).unwrap();
    assert_eq!(probe(), Presence::Absent);
    bench.site.ledger.forget(&row).unwrap();
}

/// Boots a kernel without a root file system on the machine's own KVM, to its panic.
fn boots_nested(kernel: &Path) {
    only_in_the_test_vm();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    qemu.args(["-machine", "q35", "-accel", "kvm", "-cpu", "host"]);
    qemu.args(["-m", "256", "-no-reboot", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(kernel);
    // It reboots when it has panicked, and so ends.
    qemu.args(["-append", "console=ttyS0 panic=-1"]);
    let console = said(&mut qemu);
    for line in [
        "Linux version",
        "Hypervisor detected: KVM",
        "Kernel panic - not syncing: VFS",
    ] {
        assert!(console.contains(line), "no \"{line}\" in:\n{console}");
    }
}

#[test]
fn the_purpose_built_kernel_boots_nested() {
    boots_nested(&Kernel::Guest.image());
}

#[test]
fn the_distributions_kernel_boots_nested() {
    boots_nested(&Kernel::Debian.image());
}

#[test]
fn there_is_a_terminal_for_who_asks_and_cgroups_of_the_second_kind() {
    only_in_the_test_vm();
    let mut script = Command::new("script");
    script.args(["--quiet", "--command", "test -t 0 && echo yes", "/dev/null"]);
    script.stdin(Stdio::null());
    assert_eq!(said(&mut script), "yes");
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    for controller in ["cpu", "memory", "pids"] {
        assert!(controllers.contains(controller), "{controllers}");
    }
}

#[test]
fn temporary_files_are_on_a_disk_with_room() {
    only_in_the_test_vm();
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(20 << 30).unwrap();
    file.write_all(b"x").unwrap();
    let kind = said(Command::new("stat").args(["--file-system", "--format=%T", "/tmp"]));
    assert_eq!(kind, "ext2/ext3");
}
