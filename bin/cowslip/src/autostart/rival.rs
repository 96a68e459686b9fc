//! Waits for an engine that somebody else started: until it listens, or until it gives the state
//! directory's lock up. The kernel reports both.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use cowslip_host::Layout;
use rustix::fs::inotify;

use crate::exit::Failure;

/// What became of the other engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rival {
    /// It listens.
    Listens,
    /// It has ended.
    Ended,
    /// Neither, within the time there was.
    Silent,
}

/// Waits until the other engine listens or ends, or until the deadline.
pub(super) fn wait(layout: &Layout, deadline: Instant) -> Result<Rival, Failure> {
    let (tell, told) = channel();
    watch_socket(layout, tell.clone())?;
    watch_lock(layout, tell)?;
    let left = deadline.saturating_duration_since(Instant::now());
    Ok(told.recv_timeout(left).unwrap_or(Rival::Silent))
}

/// Tells when the API's socket is there and answers. Sockets are renamed into place, listening.
fn watch_socket(layout: &Layout, tell: Sender<Rival>) -> Result<(), Failure> {
    let run = layout.run().to_owned();
    let failed = |error: rustix::io::Errno| {
        Failure::io(
            format!("watch \"{}\"", layout.run().display()),
            &error.into(),
        )
    };
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(failed)?;
    let flags = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE;
    inotify::add_watch(&watch, &run, flags).map_err(failed)?;
    let socket = layout.api_socket();
    std::thread::spawn(move || {
        let name = socket
            .file_name()
            .unwrap_or_else(|| OsStr::new(""))
            .to_owned();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        loop {
            // The watch stands: whatever comes after this look is an event.
            if UnixStream::connect(&socket).is_ok() {
                let _ = tell.send(Rival::Listens);
                return;
            }
            loop {
                match events.next() {
                    Ok(event)
                        if event
                            .file_name()
                            .is_some_and(|found| found.to_bytes() == name.as_bytes()) =>
                    {
                        break;
                    }
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        }
    });
    Ok(())
}

/// Tells when the lock is free, which it is when its holder has ended.
fn watch_lock(layout: &Layout, tell: Sender<Rival>) -> Result<(), Failure> {
    let path = layout.state().join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let _ = tell.send(Rival::Ended);
            return Ok(());
        }
        Err(error) => {
            return Err(Failure::io(
                format!("open the lock \"{}\"", path.display()),
                &error,
            ));
        }
    };
    std::thread::spawn(move || {
        if file.lock_shared().is_ok() {
            let _ = tell.send(Rival::Ended);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;

    fn layout(dir: &tempfile::TempDir) -> (Layout, File) {
        let layout = Layout::new(dir.path().to_owned(), dir.path().join("run"));
        std::fs::create_dir(layout.run()).unwrap();
        let lock = File::create(dir.path().join("lock")).unwrap();
        lock.lock().unwrap();
        (layout, lock)
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_rival_that_comes_up_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _lock) = layout(&dir);
        let waiting = std::thread::spawn({
            let layout = layout.clone();
            move || wait(&layout, far()).unwrap()
        });
        let fresh = layout.run().join("new");
        let _listener = UnixListener::bind(&fresh).unwrap();
        std::fs::rename(&fresh, layout.api_socket()).unwrap();
        assert_eq!(waiting.join().unwrap(), Rival::Listens);
    }

    #[test]
    fn a_rival_that_ends_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, lock) = layout(&dir);
        let waiting = std::thread::spawn({
            let layout = layout.clone();
            move || wait(&layout, far()).unwrap()
        });
        drop(lock);
        assert_eq!(waiting.join().unwrap(), Rival::Ended);
    }

    #[test]
    fn a_rival_that_does_neither_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _lock) = layout(&dir);
        assert_eq!(wait(&layout, Instant::now()).unwrap(), Rival::Silent);
    }
}
