//! Room for the ledger on a full disk.
//!
//! What frees space is written to the ledger first, and on a full disk nothing can be written. So a file
//! of no use lies beside the database; when the disk is about to be full it goes, and is laid there
//! again when there is space.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// The file in the state directory.
const BALLAST: &str = "ballast";

/// More than removing every sandbox of a large host writes.
const MAX: u64 = 8 << 20;
/// A few transactions.
const MIN: u64 = 256 << 10;
/// Part of the disk that it takes at most.
const PART: u64 = 256;
/// It is laid down again only with so many times its size free.
const ROOM: u64 = 8;

#[derive(Debug)]
pub(crate) struct Ballast {
    directory: PathBuf,
    path: PathBuf,
}

/// Free bytes, and the size that the ballast has on this disk.
fn measure(directory: &Path) -> io::Result<(u64, u64)> {
    let found = statvfs(directory)?;
    let size = found.f_blocks.saturating_mul(found.f_frsize) / PART;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    Ok((free, size.clamp(MIN, MAX)))
}

impl Ballast {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            path: directory.join(BALLAST),
        }
    }

    /// Lays it down where it is not and there is space. Without it everything works but on a full disk.
    pub(crate) fn renew(&self) -> io::Result<()> {
        let (free, size) = measure(&self.directory)?;
        if free < ROOM * size || self.path.exists() {
            return Ok(());
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path)?;
        let laid = lay(&file, size);
        if laid.is_err() {
            let _ = std::fs::remove_file(&self.path);
        }
        laid
    }

    /// Before a write: gives the space up when less than as much is left.
    pub(crate) fn make_room(&self) {
        let full = measure(&self.directory).is_ok_and(|(free, size)| free < size);
        if full && std::fs::remove_file(&self.path).is_ok() {
            tracing::warn!(path = %self.path.display(), "the disk is full: its ballast was given up");
        }
    }
}

fn lay(file: &File, size: u64) -> io::Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, size)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_room_and_is_laid_down_once() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(dir.path());
        ballast.renew().unwrap();
        let found = std::fs::metadata(dir.path().join(BALLAST)).unwrap();
        assert!((MIN..=MAX).contains(&found.len()));
        assert!(found.blocks() * 512 >= found.len(), "it is a hole");
        ballast.renew().unwrap();
        let again = std::fs::metadata(dir.path().join(BALLAST)).unwrap();
        assert_eq!(found.ino(), again.ino());
        // There is space here.
        ballast.make_room();
        assert!(dir.path().join(BALLAST).exists());
    }
}
