//! Where the blobs of an image are.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{BlobDigest, ImageError};

/// Holds blobs by their digests, or gets them when they are asked for.
///
/// What it gives is checked by whoever reads it; an implementation need not.
pub trait Blobs: Send + Sync {
    /// Opens a blob at its start; `None` when there is none of that digest.
    ///
    /// # Errors
    /// Whatever opening gives.
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn Read + '_>>>;
}

/// A directory with a file `ALGORITHM/HEX` for each blob: a cache of downloads, or the `blobs` of a
/// layout. No symbolic link in it is followed.
#[derive(Debug)]
pub struct BlobDirectory {
    root: OwnedFd,
    path: PathBuf,
    below: &'static str,
}

impl BlobDirectory {
    /// Opens the directory; a symbolic link to it is followed, being the user's own word.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::open_below(path, "")
    }

    /// For blobs in a directory of the one that is opened, which ends in a slash.
    pub(super) fn open_below(path: &Path, below: &'static str) -> Result<Self, ImageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| ImageError::Read {
                operation: "open",
                path: path.to_owned(),
                source: error.into(),
            })?;
        Ok(Self {
            root,
            path: path.to_owned(),
            below,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file by its path in the directory; `None` when there is none.
    pub(super) fn file(&self, path: &str) -> io::Result<Option<File>> {
        // Not to wait for the other end of a fifo.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere made the kernel unsure; it asks to be called again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(Errno::LOOP) => {
                    return Err(io::Error::other(
                        "it is a symbolic link, and none is followed here; copy the image with \
                         \"cp -rL\"",
                    ));
                }
                result => break File::from(result?),
            }
        };
        match file.metadata()?.is_file() {
            true => Ok(Some(file)),
            false => Err(io::Error::other("it is not a regular file")),
        }
    }
}

impl Blobs for BlobDirectory {
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn Read + '_>>> {
        let path = format!("{}{}/{}", self.below, digest.algorithm(), digest.hex());
        let file = self.file(&path)?;
        Ok(file.map(|file| Box::new(file) as Box<dyn Read>))
    }
}
