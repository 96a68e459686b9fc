//! What was downloaded: blobs by their digests, shared by all images.
//!
//! ```text
//!  blobs/sha256/HEX        whole and checked; its time is when it was last used
//!  partial/sha256-HEX      on its way, locked by who downloads it
//!  references/HEX          what an image was when it was pulled last
//! ```
//!
//! A blob is written to `partial`, and is moved when it is whole, has the right digest and is on the disk. So a
//! crash leaves what can be gone on with, and nothing that could be taken for a blob.
//!
//! Who uses a blob holds a shared lock of its file ([`Lease`]); who removes one must have an exclusive lock. The kernel
//! drops locks with their process, so neither a crash nor a second process needs anything else.

mod blob;
mod gc;
mod lease;
mod partial;
mod references;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cowslip_image::BlobDigest;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::error::PullError;

pub use gc::Collected;
pub use lease::Lease;
pub(crate) use lease::{Held, View};
pub(crate) use partial::Partial;
pub(crate) use references::Record;

/// A directory of downloaded blobs. Clones are the same cache.
#[derive(Debug, Clone)]
pub struct Cache {
    root: Arc<Path>,
    turns: Arc<Mutex<HashMap<BlobDigest, Weak<AsyncMutex<()>>>>>,
}

/// Something with the cache's files does not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} \"{}\" in the cache of images", path.display())]
pub struct CacheError {
    /// What was tried.
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// For errors of one operation on one path.
fn failed<E: Into<io::Error>>(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> CacheError {
    move |source| CacheError {
        operation,
        path: path.to_owned(),
        source: source.into(),
    }
}

impl Cache {
    /// Opens a cache, and makes what is not there of its directories; nobody else may look into them.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        for below in ["blobs/sha256", "blobs/sha512", "partial", "references"] {
            let path = directory.join(below);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(failed("make", &path))?;
        }
        Ok(Self {
            root: directory.into(),
            turns: Arc::default(),
        })
    }

    /// The directory to read blobs from, with [`cowslip_image::BlobDirectory`].
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn blob_path(&self, digest: &BlobDigest) -> PathBuf {
        self.blobs().join(digest.algorithm()).join(digest.hex())
    }

    fn partial_directory(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn partial_path(&self, digest: &BlobDigest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        self.partial_directory().join(name)
    }

    fn references_directory(&self) -> PathBuf {
        self.root.join("references")
    }

    /// Waits until nobody else in this process gets this blob.
    pub(crate) async fn turn(&self, digest: &BlobDigest) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let found = turns.get(digest).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(digest.clone(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// Runs what may wait for a disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PullError> {
    // It panics in tests only; otherwise the runtime is being shut down.
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| PullError::Cancelled)
}

/// Whether a path still names an opened file: it may have been moved or removed before the lock was there.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |stat: &fs::Metadata| (stat.dev(), stat.ino());
    match fs::symlink_metadata(path) {
        Ok(stat) => Ok(identity(&stat) == identity(&file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the names in a directory last.
fn sync_directory(path: &Path) -> Result<(), CacheError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", path))
}
