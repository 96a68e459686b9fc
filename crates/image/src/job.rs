//! What an import is asked to do, what it may use, and what it gives back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Digest, ImportError};

/// One import: where to work, what to write, and within which bounds.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// An existing private directory for scratch files, on the same file system as `output`.
    ///
    /// The caller removes it afterwards, whatever the outcome. A tar or an image needs room
    /// there for its contents and for the result at once, and an archive around an image that is
    /// compressed or no file needs room for itself.
    pub work_dir: &'a Path,
    /// The image to make. It must not exist yet; it appears at once, complete and synced.
    pub output: &'a Path,
    /// File system label, at most 16 bytes.
    pub label: &'a str,
    /// Bounds on the source.
    pub limits: Limits,
    /// How large the file system becomes.
    pub sizing: Sizing,
    /// What becomes of the owners found in a source directory.
    pub owners: Owners,
    /// Told how far the import is.
    pub progress: &'a dyn Progress,
    /// Asked, often, whether to stop.
    pub cancel: &'a Cancel,
}

/// Bounds on what a source may contain. Crossing one is an error that names the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Total apparent size of all files, in bytes. Holes of sparse files count.
    pub max_bytes: u64,
    /// Number of entries, directories and duplicates included.
    pub max_entries: u64,
    /// Length of one entry's path, in bytes.
    pub max_path_len: usize,
    /// Number of components of one entry's path.
    pub max_depth: usize,
    /// Number of names of one file. ext4 has a bound of its own, 65,000.
    pub max_links: u32,
    /// Number of extended attributes of one entry.
    pub max_xattrs: usize,
    /// Names and values of one entry's extended attributes together, in bytes.
    pub max_xattr_bytes: usize,
    /// Number of layers of one image. All the other bounds are for all layers together.
    pub max_layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_entries: 2_000_000,
            max_path_len: 4095,
            max_depth: 256,
            max_links: 65_000,
            max_xattrs: 128,
            max_xattr_bytes: 128 << 10,
            max_layers: 512,
        }
    }
}

/// How large the file system becomes: content and metadata, plus room to write.
///
/// The content counts by its apparent size, so that a guest can fill the holes of sparse files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizing {
    /// The image is at least this large, in bytes.
    pub min_bytes: u64,
    /// Bytes free for the guest after the content, at least.
    pub free_bytes: u64,
    /// Inodes free for the guest after the content, at least.
    pub free_inodes: u64,
}

impl Default for Sizing {
    fn default() -> Self {
        Self {
            min_bytes: 0,
            free_bytes: 64 << 20,
            free_inodes: 4096,
        }
    }
}

/// What becomes of the owners found in a source directory. A tar's owners are always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// Keep numeric owners as they are: right when root imports.
    #[default]
    Keep,
    /// Entries of the importing user and group become root's; others are kept.
    ///
    /// For a user who unpacked a root file system without privileges and so owns all of it.
    SelfIsRoot,
}

/// What an import made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// SHA-256 of the whole image, as `sha256sum` prints it.
    pub digest: Digest,
    /// Length of the image in bytes, a multiple of 4096.
    pub size: u64,
    /// Bytes of the file system in use, its own metadata and journal included.
    pub used: u64,
    /// Files, directories and other names in the image, the root not counted.
    pub entries: u64,
    /// What the image does not have from the source, and why.
    pub skipped: Vec<Skipped>,
}

/// Something of the source that is not in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The entry's path, escaped for display.
    pub entry: String,
    /// Why it was left out.
    pub why: String,
}

/// The steps of an import, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the tar or the layers, or walking the directory. It may begin twice: a stream with an
    /// image in it is first kept as a file.
    Reading,
    /// Writing the file system.
    Writing,
    /// Computing the digest and syncing.
    Sealing,
}

/// Receives the progress of an import, on the importing thread.
pub trait Progress {
    /// A phase begins; `total` is its length in bytes when it is known.
    fn phase(&self, phase: Phase, total: Option<u64>);
    /// So much of the phase is done, in total since its start. Called often: for each entry, and
    /// several times for a large one.
    fn advance(&self, bytes: u64, entries: u64);
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn phase(&self, _: Phase, _: Option<u64>) {}
    fn advance(&self, _: u64, _: u64) {}
}

/// A request to stop, shared between the importing thread and whoever may cancel it.
///
/// A reader that blocks (a silent standard input) notices only when it returns.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the import to stop; it then fails with [`ImportError::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<(), ImportError> {
        if self.is_cancelled() {
            return Err(ImportError::Cancelled);
        }
        Ok(())
    }
}
