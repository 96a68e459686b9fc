//! Files that are whole or absent, also after a power cut.
//!
//! A file is written under a temporary name, synced, and renamed over its own; the directory is
//! synced after that. Callers hold the directory's lock, so the temporary name can be fixed: what a
//! crash leaves there is overwritten by the next attempt and never accumulates.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, HashingWriter};

/// Writes `dir/name` through `fill`, atomically; gives the digest and size in bytes of the file.
///
/// On error `dir/name` is as it was and the temporary file is gone.
pub(crate) fn write_file<E: From<io::Error>>(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(Digest, u64), E> {
    let temporary = temporary_path(dir, name);
    let result = write_temporary(&temporary, fill).and_then(|record| {
        fs::rename(&temporary, dir.join(name))?;
        sync_dir(dir)?;
        Ok(record)
    });
    if result.is_err() {
        // The first error is the one to report; a temporary file that stays is overwritten later.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_temporary<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(Digest, u64), E> {
    let mut options = OpenOptions::new();
    // No secrets: whoever may enter the directory may boot the kernel in it.
    options.write(true).create(true).truncate(true).mode(0o644);
    let mut writer = HashingWriter::new(BufWriter::with_capacity(1 << 18, options.open(path)?));
    fill(&mut writer)?;
    let (buffer, digest, size) = writer.finish();
    buffer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    Ok((digest, size))
}

/// Makes renames and removals in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Takes the exclusive lock of `dir`, waiting for it; it is held until the file is dropped.
pub(crate) fn lock_dir(dir: &Path) -> io::Result<File> {
    let file = File::open(dir)?;
    file.lock()?;
    Ok(file)
}

/// The name under which `dir/name` is written before it is whole.
fn temporary_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        write_file(dir.path(), "f", |w| w.write_all(b"old")).unwrap();
        let failed: io::Result<_> = write_file(dir.path(), "f", |w| {
            w.write_all(b"new")?;
            Err(io::Error::other("no space"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_leftover_of_a_crash_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(temporary_path(dir.path(), "f"), b"half of something longer").unwrap();
        let (digest, size) = write_file(dir.path(), "f", |w| w.write_all(b"whole")).unwrap();
        assert_eq!((digest, size), (Digest::of(b"whole"), 5));
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
