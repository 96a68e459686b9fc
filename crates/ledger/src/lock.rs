//! The lock on a state directory: one engine at a time, and the second is told who holds it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Held for as long as the engine lives; the kernel gives it up with the process.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another engine has it.
    #[error(
        "the state directory \"{dir}\" is in use by another engine (process {holder}): stop that one, or choose another with --state-dir"
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The pid it wrote, or "unknown".
        holder: String,
    },
    /// The lock file could not be used.
    #[error("lock the state directory \"{dir}\": {source}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl StateLock {
    /// Takes the lock of `dir`, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] when another process has it, [`LockError::Io`] otherwise.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io {
            dir: dir.to_owned(),
            source,
        };
        let path = dir.join("lock");
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // Only for the message: an unreadable pid is "unknown".
                    let _ = file.read_to_string(&mut holder);
                    let holder = holder.trim();
                    let holder = if holder.is_empty() { "unknown" } else { holder };
                    return Err(LockError::Held {
                        dir: dir.to_owned(),
                        holder: holder.to_owned(),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
            // Somebody may have unlinked the file between open and lock: then ours guards nothing.
            let same = std::fs::metadata(&path).is_ok_and(|now| {
                file.metadata()
                    .is_ok_and(|ours| ours.ino() == now.ino() && ours.dev() == now.dev())
            });
            if !same {
                continue;
            }
            file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
            writeln!(file, "{}", std::process::id()).map_err(io)?;
            return Ok(Self { _file: file });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::acquire(dir.path()).unwrap();
        let error = StateLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        StateLock::acquire(dir.path()).unwrap();
    }
}
