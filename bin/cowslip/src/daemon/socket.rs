//! The API's socket.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cowslip_host::Layout;

use crate::exit::Failure;

/// Its permission bits: its owner and group; who gets into the run directory is decided there.
const MODE: u32 = 0o660;

/// The socket's place in the file system.
#[derive(Debug)]
pub(super) struct SocketPath(PathBuf);

/// Listens. The lock on the state directory is held, so whatever has the socket's place is left over.
///
/// The socket is bound under another name and renamed when it listens: who sees it can connect to
/// it, and one that is left over is replaced in one step.
pub(super) fn listen(layout: &Layout) -> Result<(tokio::net::UnixListener, SocketPath), Failure> {
    let path = layout.api_socket();
    let fresh = layout.run().join("api.new");
    let failed = |error| Failure::io(format!("listen at \"{}\"", path.display()), &error);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(MODE))
        .and_then(|()| listener.set_nonblocking(true))
        .and_then(|()| std::fs::rename(&fresh, &path))
        .map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    Ok((listener, SocketPath(path)))
}

impl SocketPath {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Takes the socket away: nobody new can connect.
    pub(super) fn close(&self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, "remove the socket");
        }
    }
}
