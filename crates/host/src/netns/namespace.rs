//! Network namespaces with a name: a file that the namespace is mounted on, as ip-netns(8) has them.
//!
//! A namespace is a thread's: whatever is done in one is done by a thread of its own, which ends with it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::statfs;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::HostError;
use crate::file::Inode;

const SELF: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC`.
const NSFS: u32 = 0x6e73_6673;

/// Makes the file that a namespace is to be named by.
pub(super) fn claim(path: &Path) -> Result<(), HostError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(HostError::path("make", path))
}

/// Makes a namespace under a name that was claimed, and does something in it.
pub(super) fn make(
    path: &Path,
    inside: impl FnOnce() -> Result<(), HostError> + Send,
) -> Result<(), HostError> {
    in_thread(|| {
        // SAFETY: of this thread alone, which shares no network namespace that others count on, and ends here.
        #[allow(unsafe_code)]
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(HostError::path("make a network namespace for", path))?;
        mount_bind(SELF, path).map_err(HostError::path("name a network namespace", path))?;
        inside()
    })?
}

/// Does something in a namespace without a name, which goes with it.
pub(crate) fn try_out(
    inside: impl FnOnce() -> Result<(), HostError> + Send,
) -> Result<(), HostError> {
    in_thread(|| {
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(HostError::process(
            "make a network namespace in",
            "the engine",
        ))?;
        inside()
    })?
}

/// Does something in a namespace.
pub(super) fn enter<T: Send>(
    path: &Path,
    inside: impl FnOnce() -> T + Send,
) -> Result<T, HostError> {
    let namespace = File::open(path).map_err(HostError::path("open", path))?;
    in_thread(|| {
        use std::os::fd::AsFd;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(HostError::path("enter the network namespace", path))?;
        Ok(inside())
    })?
}

/// The namespace that bears a name.
pub(super) fn find(path: &Path) -> Result<Option<Inode>, HostError> {
    match statfs(path) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(HostError::path("look at", path)(error)),
        Ok(found) if u32::try_from(found.f_type).ok() == Some(NSFS) => Inode::of(path).map(Some),
        Ok(_) => Ok(None),
    }
}

/// Takes the name from a namespace: what is in it goes, if no process is.
pub(super) fn remove(path: &Path) -> Result<(), HostError> {
    while find(path)?.is_some() {
        unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(HostError::path("unmount", path))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::path("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Runs something in a thread that nothing else will run in.
pub(super) fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, HostError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network".to_owned());
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(HostError::process("start a thread of", "the engine"))?;
        thread.join().map_err(|_| {
            let source = io::Error::other("it panicked");
            HostError::process("work in a thread of", "the engine")(source)
        })
    })
}
