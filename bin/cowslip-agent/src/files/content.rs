//! Reading and writing one regular file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use cowslip_proto::limits::CHUNK_BYTES;
use cowslip_proto::pb;
use tokio::sync::mpsc;
use tonic::Status;

use super::{owner, path, refused};

const READ: &str = "read file";
const WRITE: &str = "write file";

/// Opens a file without ever waiting for the other side of a pipe, and refuses what is none.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file",
        ));
    }
    Ok(file)
}

/// Opens the file of a request at its offset.
pub(crate) fn open_to_read(request: &pb::ReadFileRequest) -> Result<impl Read + use<>, Status> {
    let path = path(&request.path)?;
    let failed = |e: io::Error| refused(READ, &path, &e);
    let mut file = open(OpenOptions::new().read(true), &path).map_err(failed)?;
    if request.offset > 0 {
        file.seek(SeekFrom::Start(request.offset)).map_err(failed)?;
    }
    Ok(file.take(if request.length == 0 {
        u64::MAX
    } else {
        request.length
    }))
}

/// Sends a reader's content piece by piece, as fast as it is taken.
pub(crate) fn send(
    mut from: impl Read,
    to: &mpsc::Sender<Result<pb::FileChunk, Status>>,
) -> Result<(), Status> {
    loop {
        let mut data = vec![0; CHUNK_BYTES];
        let length = match from.read(&mut data) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Status::unknown(format!("cannot read on: {e}"))),
        };
        data.truncate(length);
        // Nobody listens any more: nothing is left to do.
        if to
            .blocking_send(Ok(pb::FileChunk {
                data: Bytes::from(data),
            }))
            .is_err()
        {
            return Ok(());
        }
    }
}

/// Writes the file of a request from a reader; gives back the bytes written.
pub(crate) fn write(header: &pb::WriteFileHeader, mut from: impl Read) -> Result<u64, Status> {
    let path = path(&header.path)?;
    let owner = owner(&header.user)?;
    let failed = |e: io::Error| refused(WRITE, &path, &e);
    if header.parents
        && let Some(parent) = path.parent()
    {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mode = if header.mode == 0 {
        0o644
    } else {
        header.mode & 0o7777
    };
    let mut options = OpenOptions::new();
    options.write(true).append(header.append).mode(mode);
    let (mut file, new) = match open(options.create_new(true), &path) {
        Ok(file) => (file, true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (
            open(options.create_new(false).create(true), &path).map_err(failed)?,
            false,
        ),
        Err(e) => return Err(failed(e)),
    };
    if !header.append {
        file.set_len(0).map_err(failed)?;
    }
    if new {
        // The agent's umask had its say; and setuid bits go when the owner changes.
        if let Some(owner) = owner {
            std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
        }
        let mode = rustix::fs::Mode::from_raw_mode(mode);
        rustix::fs::fchmod(&file, mode).map_err(|e| failed(e.into()))?;
    }
    let bytes = copy(&mut from, &mut file).map_err(failed)?;
    Ok(bytes)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
    let bytes = io::copy(from, to)?;
    to.flush()?;
    Ok(bytes)
}
