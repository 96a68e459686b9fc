//! Waiting for a file or a directory to change, by inotify: no polling.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::error::HostError;

/// A watch on one file, or on the entries of one directory.
#[derive(Debug)]
pub struct FileWatch {
    events: AsyncFd<OwnedFd>,
}

impl FileWatch {
    /// Watches `path` for writes, truncation and removal.
    ///
    /// # Errors
    /// When it is not there or cannot be watched.
    pub fn new(path: &Path) -> Result<Self, HostError> {
        let flags = WatchFlags::MODIFY
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB;
        Self::with(path, flags)
    }

    /// Watches the directory `path` for entries that come, go or are written.
    ///
    /// # Errors
    /// When it is not there, is no directory or cannot be watched.
    pub fn directory(path: &Path) -> Result<Self, HostError> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR;
        Self::with(path, flags)
    }

    fn with(path: &Path, flags: WatchFlags) -> Result<Self, HostError> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(HostError::path("watch", path))?;
        inotify::add_watch(&fd, path, flags).map_err(HostError::path("watch", path))?;
        // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives, and the
        // registration owns it.
        let events = unsafe { AsyncFd::register(fd) }.map_err(HostError::path("watch", path))?;
        Ok(Self { events })
    }

    /// Resolves when something has changed since the last call.
    ///
    /// # Errors
    /// When the watch broke.
    pub async fn changed(&mut self) -> std::io::Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(ready.get_inner(), &mut buffer);
            match reader.next() {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_wakes_the_watch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "a").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        std::fs::write(&path, "ab").unwrap();
        watch.changed().await.unwrap();
        assert!(FileWatch::new(&dir.path().join("none")).is_err());
    }
    #[tokio::test]
    async fn a_new_entry_wakes_the_watch_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::directory(dir.path()).unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "a").unwrap();
        watch.changed().await.unwrap();
        assert!(FileWatch::directory(&path).is_err());
    }
}
