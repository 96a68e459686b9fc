//! Changes below a directory, by inotify.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowslip_proto::pb::{WatchEvent, WatchKind, WatchRequest};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tonic::Status;

use super::{path, refused};
use crate::sys;

/// Directories that one call watches.
const MAX_DIRECTORIES: usize = 4096;

const WANTED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// A directory, or a tree of them, under watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    fd: AsyncFd<OwnedFd>,
    root: PathBuf,
    recursive: bool,
    /// Paths relative to the root, by watch descriptor.
    directories: HashMap<i32, PathBuf>,
}

impl Watcher {
    /// Puts the watches of a request in place.
    pub(crate) fn new(request: &WatchRequest) -> Result<Self, Status> {
        let root = path(&request.path)?;
        let failed = |e: io::Error| refused("watch", &root, &e);
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        let fd = sys::watch(fd, Interest::READABLE).map_err(failed)?;
        let mut watcher = Self {
            fd,
            root: root.clone(),
            recursive: request.recursive,
            directories: HashMap::new(),
        };
        watcher.add(PathBuf::new()).map_err(failed)?;
        Ok(watcher)
    }

    /// Watches a directory, and with `recursive` everything below it.
    fn add(&mut self, relative: PathBuf) -> io::Result<()> {
        let mut stack = vec![relative];
        while let Some(relative) = stack.pop() {
            if self.directories.len() >= MAX_DIRECTORIES {
                return Err(io::Error::other(
                    "there are more than 4096 directories below it",
                ));
            }
            let full = self.root.join(&relative);
            let mut flags = WANTED;
            if !relative.as_os_str().is_empty() {
                flags |= WatchFlags::DONT_FOLLOW;
            }
            let descriptor = match inotify::add_watch(&self.fd, &full, flags) {
                Ok(descriptor) => descriptor,
                // Gone already, or replaced by something else.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)
                    if !relative.as_os_str().is_empty() =>
                {
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            self.directories.insert(descriptor, relative.clone());
            if self.recursive {
                let below = std::fs::read_dir(&full).into_iter().flatten().flatten();
                let below = below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
                stack.extend(below.map(|e| relative.join(e.file_name())));
            }
        }
        Ok(())
    }

    /// Sends changes until nobody listens or the directory goes away.
    pub(crate) async fn run(mut self, to: mpsc::Sender<Result<WatchEvent, Status>>) {
        let ready = WatchEvent {
            kind: WatchKind::Ready.into(),
            path: Vec::new(),
        };
        if to.send(Ok(ready)).await.is_err() {
            return;
        }
        loop {
            let events = tokio::select! {
                events = self.read() => events,
                () = to.closed() => return,
            };
            let events = match events {
                Ok(events) => events,
                Err(e) => {
                    let _ = to.send(Err(refused("watch", &self.root, &e))).await;
                    return;
                }
            };
            for (descriptor, flags, name) in events {
                let Some(event) = self.translate(descriptor, flags, name.as_deref()) else {
                    continue;
                };
                let stop = event.is_err();
                if to.send(event).await.is_err() || stop {
                    return;
                }
            }
        }
    }

    async fn read(&self) -> io::Result<Vec<(i32, ReadFlags, Option<PathBuf>)>> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut buf = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut buf);
            let mut events = Vec::new();
            loop {
                match reader.next() {
                    Ok(event) => {
                        let name = event
                            .file_name()
                            .map(|n| OsStr::from_bytes(n.to_bytes()).into());
                        events.push((event.wd(), event.events(), name));
                        if reader.is_buffer_empty() {
                            return Ok(events);
                        }
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(e) => return Err(e.into()),
                }
            }
            guard.clear_ready();
        }
    }

    fn translate(
        &mut self,
        descriptor: i32,
        flags: ReadFlags,
        name: Option<&Path>,
    ) -> Option<Result<WatchEvent, Status>> {
        let event = |kind: WatchKind, path: &Path| {
            Some(Ok(WatchEvent {
                kind: kind.into(),
                path: path.as_os_str().as_bytes().to_vec(),
            }))
        };
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return event(WatchKind::Overflow, Path::new(""));
        }
        if flags.contains(ReadFlags::IGNORED) {
            let gone = self.directories.remove(&descriptor)?;
            let is_root = gone.as_os_str().is_empty();
            let message = "the watched directory was removed";
            return is_root.then(|| Err(Status::not_found(message)));
        }
        let directory = self.directories.get(&descriptor)?;
        let path = directory.join(name?);
        let is_dir = flags.contains(ReadFlags::ISDIR);
        let comes = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if self.recursive && is_dir && comes && self.add(path.clone()).is_err() {
            // Not all of it is watched: the caller must look for itself.
            return event(WatchKind::Overflow, &path);
        }
        let kinds = [
            (ReadFlags::CREATE, WatchKind::Created),
            (ReadFlags::MODIFY, WatchKind::Modified),
            (ReadFlags::DELETE, WatchKind::Removed),
            (ReadFlags::MOVED_FROM, WatchKind::RenamedFrom),
            (ReadFlags::MOVED_TO, WatchKind::RenamedTo),
            (ReadFlags::ATTRIB, WatchKind::Attributes),
        ];
        let (_, kind) = kinds.iter().find(|(flag, _)| flags.contains(*flag))?;
        event(*kind, &path)
    }
}
