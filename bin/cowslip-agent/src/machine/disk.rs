//! The guest's file systems: growing the root, writing everything out, making it safe to cut the
//! power.

use std::fs::{self, File};
use std::io;

use rustix::fs::StatVfs;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

use crate::sys;

/// Sectors of sysfs are always of this size, in bytes.
const SECTOR: u64 = 512;

/// Why the root file system did not grow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrowError {
    #[error("cannot find the size of the root disk in \"{path}\": {source}")]
    Size {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the root file system: {0}")]
    Stat(#[source] io::Error),
    #[error("cannot grow the root file system to {bytes} bytes: {source}")]
    Resize {
        bytes: u64,
        #[source]
        source: io::Error,
    },
}

/// Bytes of the root file system, and of it free for programs.
pub(crate) fn root_size() -> io::Result<(u64, u64)> {
    let StatVfs {
        f_frsize,
        f_blocks,
        f_bavail,
        ..
    } = rustix::fs::statvfs("/")?;
    Ok((
        f_blocks.saturating_mul(f_frsize),
        f_bavail.saturating_mul(f_frsize),
    ))
}

/// Grows the mounted root file system to the size of its disk. Gives back its size in bytes
/// before and after; growing one that is as large as its disk does nothing.
pub(crate) fn grow_root() -> Result<(u64, u64), GrowError> {
    let (before, _) = root_size().map_err(GrowError::Stat)?;
    let stat = rustix::fs::stat("/").map_err(|e| GrowError::Stat(e.into()))?;
    let block = u64::try_from(
        rustix::fs::statfs("/")
            .map_err(|e| GrowError::Stat(e.into()))?
            .f_bsize,
    )
    .unwrap_or(4096)
    .max(1);
    // By number: the name is the kernel's business.
    let (major, minor) = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    let path = format!("/sys/dev/block/{major}:{minor}/size");
    let sectors = fs::read_to_string(&path)
        .and_then(|text| text.trim().parse::<u64>().map_err(io::Error::other))
        .map_err(|source| GrowError::Size { path, source })?;
    let bytes = sectors.saturating_mul(SECTOR);
    let root = File::open("/").map_err(GrowError::Stat)?;
    match sys::ext4_resize(&root, bytes / block) {
        // The kernel says so when there is nothing to do.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) && before >= bytes - bytes / 16 => {}
        Err(source) => return Err(GrowError::Resize { bytes, source }),
        Ok(()) => {}
    }
    let (after, _) = root_size().map_err(GrowError::Stat)?;
    Ok((before, after))
}

/// One mounted file system of the guest.
#[derive(Debug)]
struct Mount {
    path: String,
    kind: String,
}

/// Mounted file systems, in the order in which they were mounted.
fn mounts() -> io::Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (fields, rest) = line.split_once(" - ")?;
    let path = unescape(fields.split(' ').nth(4)?);
    Some(Mount {
        path,
        kind: rest.split(' ').next()?.to_owned(),
    })
}

/// mountinfo writes space, tab, newline and backslash as octal numbers.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// File systems without anything to write out.
const VIRTUAL: &[&str] = &[
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "tmpfs",
    "ramfs",
    "rootfs",
    "mqueue",
    "cgroup2",
    "cgroup",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
    "nsfs",
];

/// Writes every file system's dirty data out and waits for the disks.
///
/// # Errors
/// The first that failed, named; the others were written all the same.
pub(crate) fn sync_all() -> io::Result<()> {
    let mut first = Ok(());
    let mut seen = Vec::new();
    for mount in mounts()? {
        if VIRTUAL.contains(&mount.kind.as_str()) {
            continue;
        }
        // A mount may be covered or gone; what cannot be opened is covered by sync(2) below.
        let Ok(dir) = File::open(&mount.path) else {
            continue;
        };
        let Ok(stat) = rustix::fs::fstat(&dir) else {
            continue;
        };
        if seen.contains(&stat.st_dev) {
            continue;
        }
        seen.push(stat.st_dev);
        if let Err(e) = rustix::fs::syncfs(&dir)
            && first.is_ok()
        {
            let message = format!("cannot write out \"{}\": {e}", mount.path);
            first = Err(io::Error::new(io::Error::from(e).kind(), message));
        }
    }
    rustix::fs::sync();
    first
}

/// After this nothing is lost when the power goes: unmounts what can be, makes the root
/// read-only. False when the root could not be: it is written out, but not clean.
pub(crate) fn quiesce() -> bool {
    for mount in mounts().unwrap_or_default().iter().rev() {
        let keep = mount.path == "/" || VIRTUAL.contains(&mount.kind.as_str());
        if !keep {
            let _ = unmount(mount.path.as_str(), UnmountFlags::NOFOLLOW);
        }
    }
    rustix::fs::sync();
    let read_only = mount_remount("/", MountFlags::RDONLY, "").is_ok();
    rustix::fs::sync();
    read_only
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_as_the_kernel_writes_it() {
        let line = "36 35 98:0 / /mnt/a\\040b\\134 rw,noatime shared:1 - ext4 /dev/vda rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(
            (mount.path.as_str(), mount.kind.as_str()),
            ("/mnt/a b\\", "ext4")
        );
        assert!(parse_mount("nonsense").is_none());
    }
}
