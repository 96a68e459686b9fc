//! Files: volume layers and whatever else is one file. Acquire by exclusive creation, release by
//! unlinking.

use std::fs::{File as StdFile, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use serde::{Deserialize, Serialize};

use crate::clone::clone_contents;
use crate::error::HostError;

/// The kind.
#[derive(Debug)]
pub struct File;

/// A file to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Its absolute path; the parent exists.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
}

/// Which file system object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Device number of its file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

impl Inode {
    /// The identity of what stands at `path`.
    pub(crate) fn of(path: &Path) -> Result<Self, HostError> {
        let found = std::fs::symlink_metadata(path).map_err(HostError::path("look at", path))?;
        Ok(Self {
            dev: found.dev(),
            ino: found.ino(),
        })
    }

    pub(crate) fn matches(&self, dev: u64, ino: u64) -> bool {
        self.dev == dev && self.ino == ino
    }
}

/// Fills a new file.
pub type Filler<'a> = dyn Fn(&StdFile) -> std::io::Result<()> + 'a;

/// What a new file holds.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// These bytes; blocks of zeros are left as holes.
    Bytes(&'a [u8]),
    /// These bytes, and a hole up to `size`.
    Beginning {
        /// What it begins with.
        bytes: &'a [u8],
        /// Length of the new file, in bytes.
        size: u64,
    },
    /// The bytes of another file: shared where the file system can, else copied without its holes.
    /// The new file is `size` bytes long, at least as long as the source.
    CloneOf {
        /// The file to copy.
        source: &'a Path,
        /// Length of the new file, in bytes.
        size: u64,
    },
    /// What other files add up to, each over the ones before it.
    Merged {
        /// Those files, the lowest first.
        sources: &'a [PathBuf],
        /// Length of the new file, in bytes.
        size: u64,
        /// Writes it.
        fill: &'a Filler<'a>,
    },
}

impl Resource for File {
    const KIND: &'static str = "file";
    const OUTLIVES_POWER: bool = true;
    type Spec = FileSpec;
    type Identity = Inode;
}

pub(crate) fn acquire(
    slot: Reservation<File>,
    content: Content<'_>,
) -> Result<Held<File>, HostError> {
    let path = slot.spec().path.clone();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(slot.spec().mode)
        .open(&path)
        .map_err(HostError::path("create", &path))?;
    if let Err(error) = fill(&mut file, &path, content) {
        // The row stays: should this unlink fail too, the reaper tries again.
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    let found = file.metadata().map_err(HostError::path("look at", &path))?;
    Ok(slot.acquired(Inode {
        dev: found.dev(),
        ino: found.ino(),
    })?)
}

fn fill(file: &mut StdFile, path: &Path, content: Content<'_>) -> Result<(), HostError> {
    match content {
        Content::Bytes(bytes) => write_sparse(file, bytes).map_err(HostError::path("write", path)),
        Content::Beginning { bytes, size } => write_sparse(file, bytes)
            .and_then(|()| file.set_len(size.max(bytes.len() as u64)))
            .map_err(HostError::path("write", path)),
        Content::CloneOf { source, size } => {
            let from = StdFile::open(source).map_err(HostError::path("open", source))?;
            let length = from
                .metadata()
                .map_err(HostError::path("look at", source))?
                .len();
            clone_contents(&from, file, length).map_err(HostError::path("copy to", path))?;
            file.set_len(size.max(length))
                .map_err(HostError::path("extend", path))
        }
        Content::Merged { size, fill, .. } => {
            fill(file).map_err(HostError::path("write", path))?;
            file.set_len(size).map_err(HostError::path("extend", path))
        }
    }
}

/// An empty overlay is three parts in four zeros: they cost neither time nor space.
fn write_sparse(file: &StdFile, bytes: &[u8]) -> std::io::Result<()> {
    const BLOCK: usize = 4096;
    file.set_len(bytes.len() as u64)?;
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, (index * BLOCK) as u64)?;
        }
    }
    Ok(())
}

pub(crate) fn probe(spec: &FileSpec, identity: Option<&Inode>) -> Result<Presence, HostError> {
    probe_inode(&spec.path, identity, std::fs::Metadata::is_file)
}

/// Shared by the kinds that are one directory entry.
pub(crate) fn probe_inode(
    path: &Path,
    identity: Option<&Inode>,
    right_type: impl Fn(&std::fs::Metadata) -> bool,
) -> Result<Presence, HostError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Presence::Absent)
        }
        Err(error) => Err(HostError::path("look at", path)(error)),
        Ok(found) if !right_type(&found) => Ok(Presence::Foreign),
        Ok(found) => match identity {
            Some(inode) if !inode.matches(found.dev(), found.ino()) => Ok(Presence::Foreign),
            _ => Ok(Presence::Present),
        },
    }
}

pub(crate) fn release(spec: &FileSpec, identity: Option<&Inode>) -> Result<(), HostError> {
    let presence = probe(spec, identity)?;
    unlink(&spec.path, presence)
}

/// Unlinks what a probe found.
pub(crate) fn unlink(path: &Path, presence: Presence) -> Result<(), HostError> {
    match presence {
        Presence::Absent => Ok(()),
        Presence::Foreign => Err(HostError::Foreign {
            path: path.to_owned(),
            why: "another file has its place".to_owned(),
        }),
        Presence::Present => match std::fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map_err(HostError::path("remove", path)),
        },
    }
}
