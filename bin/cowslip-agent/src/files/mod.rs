//! Files of the guest, for the host. Everything here may block and runs on threads of its own: a
//! dead mount in the guest stops one call, not the agent.

pub(crate) mod archive;
pub(crate) mod content;
pub(crate) mod tree;
pub(crate) mod watch;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::process::user::{self, Identity};

/// Longest path taken, in bytes (PATH_MAX).
const MAX_PATH: usize = 4096;

/// A path of a request: absolute, and something that the kernel can be given.
pub(crate) fn path(bytes: &[u8]) -> Result<PathBuf, Status> {
    if bytes.first() != Some(&b'/') || bytes.len() >= MAX_PATH || bytes.contains(&0) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
        let message = format!("\"{shown}\" is no absolute path of less than 4096 bytes");
        return Err(Status::invalid_argument(message));
    }
    Ok(PathBuf::from(OsStr::from_bytes(bytes)))
}

/// The owner of a request; `None` when none is named.
pub(crate) fn owner(user: &str) -> Result<Option<Identity>, Status> {
    if user.is_empty() {
        return Ok(None);
    }
    let identity = user::resolve(user, Path::new("/"));
    identity
        .map(Some)
        .map_err(|e| Status::not_found(e.to_string()))
}

/// An error of the operating system, with the operation and the path.
pub(crate) fn refused(what: &str, path: &Path, error: &io::Error) -> Status {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => Code::NotFound,
        Some(libc::EACCES | libc::EPERM) => Code::PermissionDenied,
        Some(libc::EEXIST) => Code::AlreadyExists,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE) => Code::ResourceExhausted,
        Some(libc::ENOTDIR | libc::EISDIR | libc::ENOTEMPTY | libc::EXDEV | libc::EROFS) => {
            Code::FailedPrecondition
        }
        _ => Code::Unknown,
    };
    Status::new(
        code,
        format!(
            "cannot {what} \"{}\" in the sandbox: {error}",
            path.display()
        ),
    )
}

/// Runs what may block on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Status::internal("the agent gave up this call")),
    }
}
