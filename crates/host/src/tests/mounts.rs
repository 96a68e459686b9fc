//! Bind mounts; only root can make them.

use std::path::{Path, PathBuf};

use cowslip_ledger::plan::Presence;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::Bench;
use crate::process::is_root;
use crate::{Host, HostError, Mount, MountSpec};

/// Whether this user may mount; says so where not.
pub(super) fn may_mount() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let may = is_root()
        && mount_bind(dir.path(), dir.path()).is_ok()
        && unmount(dir.path(), UnmountFlags::NOFOLLOW).is_ok();
    if !may {
        eprintln!("SKIPPED: this test mounts, and this user may not: run it as root");
    }
    may
}

/// A file system of 256 KiB, for as long as this lives.
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(super) fn over(path: &Path) -> Self {
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"size=256k").unwrap();
        Self(path.to_owned())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Takes away what a failed test left mounted.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        while unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}

struct Places {
    bench: Bench,
    source: PathBuf,
    target: PathBuf,
    _unmount: Unmount,
}

fn places() -> Places {
    let bench = Bench::new();
    let source = bench.dir.path().join("source");
    // A blank in the name: the kernel's table writes it in its own way.
    let target = bench.place("target of a mount");
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&target).unwrap();
    std::fs::write(source.join("file"), "seen").unwrap();
    Places {
        bench,
        source,
        _unmount: Unmount(target.clone()),
        target,
    }
}

#[test]
fn a_bind_mount_shows_its_source_and_no_more_rights() {
    if !may_mount() {
        return;
    }
    let Places {
        bench,
        source,
        target,
        ..
    } = &places();
    let spec = MountSpec {
        source: source.clone(),
        target: target.clone(),
        read_only: true,
    };
    let held = bench.host.bind_mount(bench.reserve::<Mount>(spec)).unwrap();
    let row = bench.row(held);
    assert_eq!(
        std::fs::read_to_string(target.join("file")).unwrap(),
        "seen"
    );
    assert!(
        std::fs::write(target.join("new"), "").is_err(),
        "it is read-only"
    );
    std::fs::write(source.join("new"), "").unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let name = target.display().to_string().replace(' ', "\\040");
    let line = table.lines().find(|line| line.contains(&name)).unwrap();
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(
            line.split([' ', ',']).any(|word| word == flag),
            "{flag} is not in {line}"
        );
    }
    assert_eq!(bench.probe(&row), Presence::Present);
    bench.release_twice(&row);
    assert!(!target.join("file").exists() && source.join("file").exists());
}

#[test]
fn another_mount_over_ours_is_left_alone() {
    if !may_mount() {
        return;
    }
    let Places {
        bench,
        source,
        target,
        ..
    } = &places();
    let spec = MountSpec {
        source: source.clone(),
        target: target.clone(),
        read_only: false,
    };
    let held = bench.host.bind_mount(bench.reserve::<Mount>(spec)).unwrap();
    let row = bench.row(held);
    std::fs::write(target.join("through"), "").unwrap();
    let other = bench.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    mount_bind(&other, target).unwrap();
    bench.assert_foreign(&row);
    unmount(target, UnmountFlags::NOFOLLOW).unwrap();
    bench.release_twice(&row);
}

#[test]
fn mounts_stay_in_cowslips_directories() {
    if !may_mount() {
        return;
    }
    let Places {
        bench,
        source,
        target,
        ..
    } = &places();
    let outside = bench.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let spec = MountSpec {
        source: source.clone(),
        target: outside,
        read_only: false,
    };
    let error = bench
        .host
        .bind_mount(bench.reserve::<Mount>(spec.clone()))
        .err()
        .unwrap();
    assert!(matches!(error, HostError::Outside { .. }), "{error}");
    assert!(
        bench
            .host
            .release(&bench.unrecorded::<Mount>(spec))
            .is_err()
    );
    // One that was made and never recorded.
    let spec = MountSpec {
        source: source.clone(),
        target: target.clone(),
        read_only: false,
    };
    let row = bench.unrecorded::<Mount>(spec);
    mount_bind(source, target).unwrap();
    assert_eq!(bench.probe(&row), Presence::Present);
    bench.release_twice(&row);
}
