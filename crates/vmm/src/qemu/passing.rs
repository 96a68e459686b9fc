//! Files that the monitor gets as open descriptors. It runs as a user who may open none of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::VmmError;

/// Any user may read a file of this mode through a descriptor, whatever its directory says.
const READABLE_BY_OTHERS: u32 = 0o004;

/// Descriptors to be inherited, each under the number it has here.
#[derive(Debug, Default)]
pub(super) struct Passed(Vec<OwnedFd>);

impl Passed {
    /// Takes a descriptor along and gives its number.
    pub(super) fn add(&mut self, fd: impl Into<OwnedFd>) -> i32 {
        let fd = fd.into();
        let number = fd.as_raw_fd();
        self.0.push(fd);
        number
    }

    /// Takes a file along that the monitor can only open by name, and gives that name. Opening
    /// `/proc/self/fd/N` asks for permission on the file itself: where another user has none, a sealed
    /// copy in memory stands in.
    pub(super) fn add_named(&mut self, path: &Path, same_user: bool) -> Result<String, VmmError> {
        let error = |source| VmmError::File {
            operation: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if !metadata.is_file() {
            return Err(error(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            )));
        }
        let fd = if same_user || metadata.mode() & READABLE_BY_OTHERS != 0 {
            file.into()
        } else {
            copy_to_memory(file).map_err(error)?
        };
        Ok(format!("/proc/self/fd/{}", self.add(fd)))
    }

    /// All of them, for the launch.
    pub(super) fn into_inner(self) -> Vec<OwnedFd> {
        self.0
    }
}

fn copy_to_memory(mut from: File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("cowslip-boot", flags)?);
    io::copy(&mut from, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// Opens a disk file for the monitor.
pub(super) fn open_disk(path: &Path, write: bool) -> Result<File, VmmError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|source| VmmError::File {
            operation: "open the disk",
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_file_is_copied_for_another_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        std::fs::write(&path, b"kernel").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut passed = Passed::default();
        let own = passed.add_named(&path, true).unwrap();
        assert_eq!(
            std::fs::canonicalize(&own).unwrap(),
            path.canonicalize().unwrap()
        );
        let copy = passed.add_named(&path, false).unwrap();
        assert!(
            std::fs::read_link(&copy)
                .unwrap()
                .to_string_lossy()
                .contains("memfd")
        );
        assert_eq!(std::fs::read(&copy).unwrap(), b"kernel");
        assert!(
            OpenOptions::new()
                .append(true)
                .open(&copy)
                .and_then(|mut file| { std::io::Write::write_all(&mut file, b"x") })
                .is_err(),
            "the copy can be changed"
        );
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let mut passed = Passed::default();
        assert!(passed.add_named(Path::new("/dev"), true).is_err());
        let error = passed
            .add_named(Path::new("/nonexistent/vmlinuz"), true)
            .unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/vmlinuz"),
            "{error}"
        );
    }
}
