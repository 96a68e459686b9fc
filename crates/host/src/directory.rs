//! Directories: acquire by `mkdir`, release by removing the whole tree.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::file::Inode;

/// The kind.
#[derive(Debug)]
pub struct Directory;

/// A directory to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectorySpec {
    /// Its absolute path; the parent exists.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
}

impl Resource for Directory {
    const KIND: &'static str = "directory";
    const OUTLIVES_POWER: bool = true;
    type Spec = DirectorySpec;
    type Identity = Inode;
}

pub(crate) fn acquire(slot: Reservation<Directory>) -> Result<Held<Directory>, HostError> {
    let spec = slot.spec();
    std::fs::DirBuilder::new()
        .mode(spec.mode)
        .create(&spec.path)
        .map_err(HostError::path("make the directory", &spec.path))?;
    let inode = Inode::of(&spec.path)?;
    Ok(slot.acquired(inode)?)
}

/// A directory whose identity was never recorded is ours by its name alone: names are ids.
pub(crate) fn probe(spec: &DirectorySpec, identity: Option<&Inode>) -> Result<Presence, HostError> {
    match std::fs::symlink_metadata(&spec.path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Presence::Absent)
        }
        Err(error) => Err(HostError::path("look at", &spec.path)(error)),
        Ok(found) if !found.is_dir() => Ok(Presence::Foreign),
        Ok(found) => match identity {
            Some(inode) if !inode.matches(found.dev(), found.ino()) => Ok(Presence::Foreign),
            _ => Ok(Presence::Present),
        },
    }
}

pub(crate) fn release(spec: &DirectorySpec, identity: Option<&Inode>) -> Result<(), HostError> {
    match probe(spec, identity)? {
        Presence::Absent => Ok(()),
        Presence::Foreign => Err(HostError::Foreign {
            path: spec.path.clone(),
            why: "another directory has its place".to_owned(),
        }),
        Presence::Present => remove_tree(&spec.path),
    }
}

/// Removes a tree without following links (the standard library walks by descriptor).
pub(crate) fn remove_tree(path: &Path) -> Result<(), HostError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(HostError::path("remove the directory", path)),
    }
}
