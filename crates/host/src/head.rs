//! Files and their beginnings, opened without trusting what stands at the path.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use cowslip_ledger::FileStamp;

use crate::error::HostError;

/// The beginning of a plain file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its first bytes.
    pub bytes: Vec<u8>,
    /// Length of the whole file, in bytes.
    pub length: u64,
    /// What the file is like.
    pub stamp: FileStamp,
}

/// The first `limit` bytes (or all, where there are fewer) of the plain file at `path`; none where
/// there is nothing.
///
/// # Errors
/// As for [`open`].
pub fn head(path: &Path, limit: usize) -> Result<Option<Head>, HostError> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    let found = file.metadata().map_err(HostError::path("look at", path))?;
    let stamp = FileStamp {
        inode: found.ino(),
        modified: found
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(found.mtime_nsec()),
    };
    let mut bytes = Vec::with_capacity(limit);
    file.take(limit as u64)
        .read_to_end(&mut bytes)
        .map_err(HostError::path("read", path))?;
    Ok(Some(Head {
        bytes,
        length: found.len(),
        stamp,
    }))
}

/// Opens the plain file at `path` to be read; none where there is nothing. Follows no link and opens
/// nothing that could block.
///
/// # Errors
/// [`HostError::Foreign`] when it is no plain file; the failing system call's otherwise.
pub fn open(path: &Path) -> Result<Option<File>, HostError> {
    let foreign = || HostError::Foreign {
        path: path.to_owned(),
        why: "it is not a plain file".to_owned(),
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // A link, and a socket, respectively.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(foreign());
        }
        Err(error) => return Err(HostError::path("open", path)(error)),
    };
    let found = file.metadata().map_err(HostError::path("look at", path))?;
    if !found.is_file() {
        return Err(foreign());
    }
    Ok(Some(file))
}

/// Whether somebody has this file open for writing, or mapped so. `file` must be open for reading only.
///
/// The kernel knows: it gives nobody a lease for reading such a file.
///
/// # Errors
/// The failing system call's.
pub fn is_written(file: &File) -> std::io::Result<bool> {
    use std::os::fd::AsRawFd;
    let lease = |kind: i32| {
        // SAFETY: a system call on an open descriptor; its argument is a number.
        let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
        if done == -1 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    match lease(libc::F_RDLCK) {
        Ok(()) => lease(libc::F_UNLCK).map(|()| false),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
