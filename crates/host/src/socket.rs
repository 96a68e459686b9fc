//! Listening unix sockets: bound by the engine and handed to the monitor as descriptors, so that the
//! monitor needs no access to the directory they stand in.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::file::{Inode, probe_inode, unlink};
use crate::layout::SOCKET_PATH_MAX;

/// The kind.
#[derive(Debug)]
pub struct Socket;

/// A socket to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// Its absolute path, at most 107 bytes.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
}

impl Resource for Socket {
    const KIND: &'static str = "socket";
    type Spec = SocketSpec;
    type Identity = Inode;
}

pub(crate) fn acquire(
    slot: Reservation<Socket>,
) -> Result<(Held<Socket>, UnixListener), HostError> {
    let path = slot.spec().path.clone();
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(HostError::Path {
            operation: "bind (the path is over 107 bytes: choose a shorter run directory)",
            path,
            source: rustix::io::Errno::NAMETOOLONG.into(),
        });
    }
    let listener = UnixListener::bind(&path).map_err(HostError::path("bind", &path))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(slot.spec().mode))
        .map_err(HostError::path("set the mode of", &path))?;
    let inode = Inode::of(&path)?;
    Ok((slot.acquired(inode)?, listener))
}

pub(crate) fn probe(spec: &SocketSpec, identity: Option<&Inode>) -> Result<Presence, HostError> {
    probe_inode(&spec.path, identity, |found| found.file_type().is_socket())
}

pub(crate) fn release(spec: &SocketSpec, identity: Option<&Inode>) -> Result<(), HostError> {
    let presence = probe(spec, identity)?;
    unlink(&spec.path, presence)
}
