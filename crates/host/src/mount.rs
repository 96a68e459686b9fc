//! Bind mounts: acquire by `mount --bind` with `nosuid,nodev`, release by unmounting. A mount is
//! known by its target in `/proc/self/mountinfo`.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde::{Deserialize, Serialize};

use crate::error::HostError;

/// The kind.
#[derive(Debug)]
pub struct Mount;

/// A bind mount to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The directory or file that is shown.
    pub source: PathBuf,
    /// Where it is shown; exists.
    pub target: PathBuf,
    /// Whether it may be written through.
    pub read_only: bool,
}

/// The kernel's number of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIdentity {
    /// First field of its line in `mountinfo`.
    pub id: u64,
}

impl Resource for Mount {
    const KIND: &'static str = "mount";
    type Spec = MountSpec;
    type Identity = MountIdentity;
}

pub(crate) fn acquire(slot: Reservation<Mount>) -> Result<Held<Mount>, HostError> {
    let MountSpec {
        source,
        target,
        read_only,
    } = slot.spec().clone();
    bind(&source, &target, read_only)?;
    let id = find(&target)?.ok_or_else(|| HostError::Path {
        operation: "find the new mount on",
        path: target.clone(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    Ok(slot.acquired(MountIdentity { id })?)
}

pub(crate) fn probe(
    spec: &MountSpec,
    identity: Option<&MountIdentity>,
) -> Result<Presence, HostError> {
    Ok(match (find(&spec.target)?, identity) {
        (None, _) => Presence::Absent,
        (Some(found), Some(known)) if found != known.id => Presence::Foreign,
        (Some(_), _) => Presence::Present,
    })
}

pub(crate) fn release(spec: &MountSpec, identity: Option<&MountIdentity>) -> Result<(), HostError> {
    match probe(spec, identity)? {
        Presence::Absent => Ok(()),
        Presence::Foreign => Err(HostError::Foreign {
            path: spec.target.clone(),
            why: "another mount covers it".to_owned(),
        }),
        Presence::Present => unmount(&spec.target, UnmountFlags::NOFOLLOW)
            .map_err(HostError::path("unmount", &spec.target)),
    }
}

/// Shows `source` on `target` too, with no more rights than are wanted.
pub(crate) fn bind(source: &Path, target: &Path, read_only: bool) -> Result<(), HostError> {
    mount_bind(source, target).map_err(HostError::path("bind a mount on", target))?;
    restrict(target, read_only)
}

/// Takes rights from the topmost bind mount on `target`.
pub(crate) fn restrict(target: &Path, read_only: bool) -> Result<(), HostError> {
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    mount_remount(target, flags, "").map_err(HostError::path("restrict the mount on", target))
}

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The kernel's number of the mount.
    pub(crate) id: u64,
    /// What is shown, as a path in its file system; `//deleted` stands after one that is gone.
    pub(crate) root: PathBuf,
    /// Where it is shown.
    pub(crate) point: PathBuf,
    /// Whether nothing can be written through it.
    pub(crate) read_only: bool,
}

/// Every mount that this process sees; of several on one place the topmost stands last.
pub(crate) fn table() -> Result<Vec<Entry>, HostError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(table).map_err(HostError::path("read", table))?;
    Ok(text
        .split(|&byte| byte == b'\n')
        .filter_map(entry)
        .collect())
}

/// `id parent major:minor root point options …`
fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    Some(Entry {
        id: std::str::from_utf8(fields.next()?).ok()?.parse().ok()?,
        root: unescape(fields.nth(2)?),
        point: unescape(fields.next()?),
        read_only: fields
            .next()?
            .split(|&byte| byte == b',')
            .any(|option| option == b"ro"),
    })
}

/// The number of the topmost mount on `target`.
fn find(target: &Path) -> Result<Option<u64>, HostError> {
    let mounts = table()?.into_iter();
    Ok(mounts
        .filter(|mount| mount.point == target)
        .map(|mount| mount.id)
        .next_back())
}

/// `mountinfo` writes blanks and backslashes as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_mount_points_are_read() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(b"/plain"), Path::new("/plain"));
    }

    #[test]
    fn a_line_of_the_kernels_table_is_read() {
        let line = b"29 1 0:26 /a\\040b /run/x ro,nosuid,nodev shared:5 - tmpfs tmpfs rw,size=1k";
        let expected = Entry {
            id: 29,
            root: "/a b".into(),
            point: "/run/x".into(),
            read_only: true,
        };
        assert_eq!(entry(line), Some(expected));
        let writable = entry(b"30 1 0:26 / /y rw,noatime - tmpfs tmpfs ro").unwrap();
        assert!(!writable.read_only, "the options of the mount count");
        assert_eq!(entry(b""), None);
    }
}
