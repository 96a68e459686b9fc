//! Changes in a state directory as they happen: moments at which a test may interfere.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::PATIENCE;

/// Watches an instance's directories. Every write of the ledger and every file made or removed is a
/// change, so the n-th change of a verb is a place in its course, the same on a fast and a slow
/// machine.
pub struct Changes {
    watch: OwnedFd,
}

impl Changes {
    /// Watches from now on.
    pub(crate) fn watch(state: &Path, run: &Path) -> Self {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let watch = inotify::init(flags).unwrap();
        let made_or_removed = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO;
        // The ledger and the log are files of the state directory itself. What guests write to their
        // layers is no step of a verb.
        let written = made_or_removed | WatchFlags::MODIFY;
        inotify::add_watch(&watch, state, written).unwrap();
        for place in ["layers", "sandboxes", "checkpoints", "templates", "handles"] {
            inotify::add_watch(&watch, state.join(place), made_or_removed).unwrap();
        }
        // They are there once an image was pulled.
        for place in ["images/partial", "images/blobs/sha256", "images/references"] {
            let place = state.join(place);
            if place.is_dir() {
                inotify::add_watch(&watch, place, made_or_removed).unwrap();
            }
        }
        for place in ["vm", "net"] {
            inotify::add_watch(&watch, run.join(place), made_or_removed).unwrap();
        }
        Self { watch }
    }

    /// Watches what is made in one directory from now on.
    ///
    /// # Panics
    /// When there is no such directory.
    #[must_use]
    pub fn made_in(directory: &Path) -> Self {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let watch = inotify::init(flags).unwrap();
        let made = WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, directory, made).unwrap();
        Self { watch }
    }

    /// Waits for `count` changes, or until `ended` is readable; gives how many there were.
    ///
    /// # Panics
    /// When neither comes.
    pub fn wait(&self, count: usize, ended: &OwnedFd) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            seen += self.pending(count - seen);
            if seen >= count {
                return seen;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let bound = Timespec::try_from(left).unwrap();
            let mut fds = [
                PollFd::new(&self.watch, PollFlags::IN),
                PollFd::new(ended, PollFlags::IN),
            ];
            assert!(
                poll(&mut fds, Some(&bound)).unwrap() > 0,
                "neither a change nor an end came"
            );
            if fds[0].revents().is_empty() {
                return seen;
            }
        }
    }

    /// Waits for a change.
    ///
    /// # Panics
    /// When none comes.
    pub fn wait_any(&self) {
        let bound = Timespec::try_from(PATIENCE).unwrap();
        let mut fds = [PollFd::new(&self.watch, PollFlags::IN)];
        assert!(poll(&mut fds, Some(&bound)).unwrap() > 0, "no change came");
        while self.pending(usize::MAX) > 0 {}
    }

    /// Takes at most `count` changes that have come.
    fn pending(&self, count: usize) -> usize {
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        let mut seen = 0;
        while seen < count && events.next().is_ok() {
            seen += 1;
        }
        seen
    }
}
