//! What there is: stat, list, make, move, remove.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use cowslip_proto::pb::{self, FileInfo, FileKind};
use tokio::sync::mpsc;
use tonic::Status;

use super::{owner, path, refused};

/// Entries in one message of a listing.
const PAGE: usize = 256;

pub(crate) fn stat(request: &pb::StatRequest) -> Result<FileInfo, Status> {
    let path = path(&request.path)?;
    let metadata = if request.follow {
        fs::metadata(&path)
    } else {
        fs::symlink_metadata(&path)
    };
    let metadata = metadata.map_err(|e| refused("look at", &path, &e))?;
    Ok(info(request.path.clone(), &path, &metadata))
}

/// Sends a directory's entries page by page.
pub(crate) fn list(
    request: &pb::ListRequest,
    to: &mpsc::Sender<Result<pb::ListReply, Status>>,
) -> Result<(), Status> {
    let path = path(&request.path)?;
    let failed = |e: io::Error| refused("list", &path, &e);
    let mut files = Vec::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(metadata) => {
                let name = entry.file_name().as_bytes().to_vec();
                files.push(info(name, &entry.path(), &metadata));
            }
            // Removed since: not there any more.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(refused("look at", &entry.path(), &e)),
        }
        if files.len() == PAGE {
            let page = pb::ListReply {
                files: std::mem::take(&mut files),
            };
            if to.blocking_send(Ok(page)).is_err() {
                return Ok(());
            }
        }
    }
    let _ = to.blocking_send(Ok(pb::ListReply { files }));
    Ok(())
}

pub(crate) fn make_dir(request: &pb::MakeDirRequest) -> Result<(), Status> {
    let path = path(&request.path)?;
    let owner = owner(&request.user)?;
    let failed = |e: io::Error| refused("make directory", &path, &e);
    if request.parents && path.is_dir() {
        return Ok(());
    }
    let mode = if request.mode == 0 {
        0o755
    } else {
        request.mode & 0o7777
    };
    let mut builder = fs::DirBuilder::new();
    if request.parents
        && let Some(parent) = path.parent()
    {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    builder.mode(mode).create(&path).map_err(failed)?;
    if let Some(owner) = owner {
        std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    }
    // Not what the agent's umask left of it.
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed)
}

pub(crate) fn rename(request: &pb::MoveRequest) -> Result<(), Status> {
    let (from, to) = (path(&request.from)?, path(&request.to)?);
    fs::rename(&from, &to).map_err(|e| {
        let what = format!("move \"{}\" to", from.display());
        refused(&what, &to, &e)
    })
}

pub(crate) fn remove(request: &pb::RemoveRequest) -> Result<(), Status> {
    let path = path(&request.path)?;
    let failed = |e: io::Error| refused("remove", &path, &e);
    let metadata = fs::symlink_metadata(&path).map_err(failed)?;
    if !metadata.is_dir() {
        return fs::remove_file(&path).map_err(failed);
    }
    if path.components().count() <= 1 {
        return Err(Status::invalid_argument(
            "the root directory cannot be removed",
        ));
    }
    if request.recursive {
        // Never follows a link, and holds directories open while it empties them.
        return fs::remove_dir_all(&path).map_err(failed);
    }
    fs::remove_dir(&path).map_err(failed)
}

fn info(name: Vec<u8>, path: &Path, metadata: &Metadata) -> FileInfo {
    let kind = metadata.file_type();
    let kind = if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else if kind.is_fifo() {
        FileKind::Fifo
    } else if kind.is_socket() {
        FileKind::Socket
    } else if kind.is_char_device() {
        FileKind::CharDevice
    } else if kind.is_block_device() {
        FileKind::BlockDevice
    } else {
        FileKind::Unspecified
    };
    let target = match kind {
        FileKind::Symlink => fs::read_link(path).unwrap_or_default(),
        _ => Default::default(),
    };
    FileInfo {
        name,
        kind: kind.into(),
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_ns: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
        target: target.into_os_string().as_bytes().to_vec(),
    }
}
