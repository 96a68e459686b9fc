//! Atomic, durable publication of a small file.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::error::HostError;

/// Writes `bytes` beside `path`, presses them onto the disk, and renames them into place: whatever
/// happens, `path` is whole or as it was.
///
/// # Errors
/// When a step fails; the temporary file is removed.
pub fn publish(path: &Path, bytes: &[u8]) -> Result<(), HostError> {
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(HostError::path("publish", path)(error));
    }
    path.parent().map_or(Ok(()), sync)
}

/// Writes bytes over those of a file, in place, and presses them onto the disk.
///
/// # Errors
/// The failing system call's.
pub fn rewrite(path: &Path, at: u64, bytes: &[u8]) -> Result<(), HostError> {
    File::options()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .and_then(|file| {
            file.write_all_at(bytes, at)?;
            file.sync_data()
        })
        .map_err(HostError::path("write to", path))
}

/// Presses a file's bytes, or a directory's entries, onto the disk.
///
/// # Errors
/// The failing system call's.
pub fn sync(path: &Path) -> Result<(), HostError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(HostError::path("sync", path))
}
