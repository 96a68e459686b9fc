//! Connecting to a socket in a directory that a jailed Firecracker may write to.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use tokio::net::UnixStream;

/// Connects to the socket at `path` and to no other: what stands there may have become a link to a socket
/// of somebody else, to whom the engine would speak with all its rights.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let place = open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let found = fstat(&place)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no socket: the machine's own files were tampered with",
        ));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let _listener = UnixListener::bind(at("other")).unwrap();
        connect(&at("other")).await.unwrap();
        symlink(at("other"), at("api")).unwrap();
        let error = connect(&at("api")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        std::fs::write(at("file"), "").unwrap();
        assert!(connect(&at("file")).await.is_err());
        let error = connect(&at("nothing")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
