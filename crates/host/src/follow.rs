//! Waiting for a file to change, by inotify: no polling.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::error::HostError;

/// A watch on one file.
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
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(HostError::path("watch", path))?;
        let flags = WatchFlags::MODIFY
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB;
        inotify::add_watch(&fd, path, flags).map_err(HostError::path("watch", path))?;
        // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives, and the
        // registration owns it.
        let events = unsafe { AsyncFd::register(fd) }.map_err(HostError::path("watch", path))?;
        Ok(Self { events })
    }

    /// Resolves when the file has changed since the last call.
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
}
