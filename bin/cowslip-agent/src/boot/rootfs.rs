//! From the initramfs to the sandbox's own root file system.
//!
//! ```text
//!   initramfs /  ── mount disk on /newroot ── empty the initramfs ── move /newroot to / ── chroot
//! ```
//!
//! The root may hold nothing but one static binary, and nothing of the agent may stay in it:
//! missing mount points are made, everything else happens on file systems of the kernel.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};

use super::BootError;
use super::cmdline::Cmdline;
use super::console::{say, show};

const NEW_ROOT: &str = "/newroot";

/// One file system of the kernel.
struct Api {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: &'static str,
    /// May a kernel be without it?
    optional: bool,
}

const NOTHING: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// What the initramfs needs.
const EARLY: &[Api] = &[
    Api {
        target: "/proc",
        kind: "proc",
        flags: NOTHING,
        data: "",
        optional: false,
    },
    Api {
        target: "/sys",
        kind: "sysfs",
        flags: NOTHING,
        data: "",
        optional: false,
    },
    Api {
        target: "/dev",
        kind: "devtmpfs",
        flags: MountFlags::NOSUID,
        data: "mode=0755",
        optional: false,
    },
];

/// What a sandbox needs beside those.
const LATE: &[Api] = &[
    Api {
        target: "/dev/pts",
        kind: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "gid=5,mode=0620,ptmxmode=0666",
        optional: false,
    },
    Api {
        target: "/dev/shm",
        kind: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=1777",
        optional: true,
    },
    Api {
        target: "/dev/mqueue",
        kind: "mqueue",
        flags: NOTHING,
        data: "",
        optional: true,
    },
    Api {
        target: "/run",
        kind: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=0755",
        optional: false,
    },
    Api {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: NOTHING,
        data: "",
        optional: true,
    },
];

/// Links that programs expect in /dev.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts /proc, /sys and /dev.
pub(super) fn mount_early() -> Result<(), BootError> {
    EARLY.iter().try_for_each(mount_api)
}

/// Mounts what a sandbox expects beside them.
pub(super) fn mount_late() -> Result<(), BootError> {
    LATE.iter().try_for_each(mount_api)?;
    for (target, link) in LINKS {
        match std::os::unix::fs::symlink(target, link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(BootError::path("make link", link, e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mount_api(api: &Api) -> Result<(), BootError> {
    let target = Path::new(api.target);
    if !target.is_dir()
        && let Err(e) = fs::create_dir_all(target)
    {
        return refuse(api, e);
    }
    let data = CString::new(api.data).unwrap_or_default();
    match mount(api.kind, target, api.kind, api.flags, Some(data.as_c_str())) {
        Ok(()) => Ok(()),
        Err(e) => refuse(api, e.into()),
    }
}

fn refuse(api: &Api, error: io::Error) -> Result<(), BootError> {
    if api.optional {
        say(&format!(
            "no {} on {}: {error}",
            api.kind,
            show(Path::new(api.target))
        ));
        return Ok(());
    }
    Err(BootError::path("mount", api.target, error))
}

/// Mounts the root disk in the initramfs.
pub(super) fn mount_disk(cmdline: &Cmdline) -> Result<(), BootError> {
    let (flags, data) = split_options(&cmdline.root_flags);
    let data = CString::new(data).unwrap_or_default();
    let result = fs::create_dir_all(NEW_ROOT).and_then(|()| {
        let kind = cmdline.fs_type.as_str();
        Ok(mount(
            cmdline.root.as_str(),
            NEW_ROOT,
            kind,
            flags,
            Some(data.as_c_str()),
        )?)
    });
    result.map_err(|e| BootError::path("mount the root disk", &cmdline.root, e))
}

/// Options of mount(8) that are flags to the kernel; the others go to the file system as they are.
fn split_options(options: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" => {}
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// Gives the initramfs's memory back and makes the disk the root.
pub(super) fn switch() -> Result<(), BootError> {
    let root = fs::metadata("/").map_err(|e| BootError::path("look at", "/", e))?;
    for api in EARLY.iter().rev() {
        // Mounted again in the new root, so that no link in it can lead the mounts astray.
        unmount(api.target, UnmountFlags::DETACH)
            .map_err(|e| BootError::path("unmount", api.target, e.into()))?;
    }
    empty(Path::new("/"), root.dev());
    std::env::set_current_dir(NEW_ROOT).map_err(|e| BootError::path("enter", NEW_ROOT, e))?;
    mount_move(".", "/").map_err(|e| BootError::path("move", NEW_ROOT, e.into()))?;
    rustix::process::chroot(".").map_err(|e| BootError::path("make root", NEW_ROOT, e.into()))?;
    std::env::set_current_dir("/").map_err(|e| BootError::path("enter", "/", e))?;
    // The initramfs is gone; these lead the new root's programs to their devices.
    mount_early()
}

/// Removes everything on one file system. What cannot be removed only costs memory.
fn empty(dir: &Path, device: u64) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.dev() != device {
            continue;
        }
        let path = entry.path();
        if metadata.is_dir() {
            empty(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_where_the_kernel_wants_them() {
        let (flags, data) = split_options("noatime,data=ordered,,ro,commit=5");
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::RDONLY);
        assert_eq!(data, "data=ordered,commit=5");
    }
}
