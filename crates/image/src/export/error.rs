//! Why an export fails, in words for the user.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::show;
use crate::ext4::read::ReadError;

/// Why an export failed. What was written until then is not whole, and is for the caller to discard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The image could not be read.
    #[error("cannot {operation} the image \"{}\"", path.display())]
    Read {
        /// What was tried.
        operation: &'static str,
        /// The image.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is no ext4 file system, or not a whole one.
    #[error("\"{}\" is not an ext4 image that can be exported: {why}", path.display())]
    NotExt4 {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// It is as after a power cut.
    #[error(
        "the image \"{}\" was not unmounted cleanly; make a template of the disk and export that",
        path.display()
    )]
    Unclean {
        /// The image.
        path: PathBuf,
    },
    /// It is of a kind that is not read here.
    #[error("the image \"{}\" cannot be exported: it uses {what}", path.display())]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// What is not read here.
        what: &'static str,
    },
    /// A file or directory contradicts itself or others.
    #[error("\"{entry}\" (inode {inode}) is damaged: {why}; look at the image with e2fsck -fn")]
    Damaged {
        /// Its path, escaped for display; `.` is the root.
        entry: String,
        /// Its inode.
        inode: u32,
        /// What is wrong.
        why: &'static str,
    },
    /// A file or directory is of a kind that is not carried.
    #[error("cannot export \"{entry}\" (inode {inode}): {what}; copy or remove it in a sandbox")]
    UnsupportedEntry {
        /// Its path, escaped for display.
        entry: String,
        /// Its inode.
        inode: u32,
        /// What it is.
        what: &'static str,
    },
    /// A bound of [`Limits`](crate::Limits) was crossed.
    #[error(
        "entry \"{entry}\" crosses the limit of {limit} {what}; raise the limit or export less"
    )]
    Limit {
        /// The entry that crossed it, escaped for display.
        entry: String,
        /// The limit.
        limit: u64,
        /// What was counted.
        what: &'static str,
    },
    /// A name that means a deletion in a layer.
    #[error(
        "cannot put \"{entry}\" into a layer: names beginning with \".wh.\" hide other names there; \
         export it as a tar, or rename it"
    )]
    Whiteout {
        /// The entry, escaped for display.
        entry: String,
    },
    /// A tag that an image cannot have.
    #[error(
        "unusable tag \"{0}\": it is 1 to 255 letters, digits and \"-._:@/+\", a letter or digit first"
    )]
    Tag(String),
    /// A config that an image cannot have.
    #[error("unusable config for the image")]
    Config(#[source] crate::oci::ImageError),
    /// The export could not be written.
    #[error("cannot write the export{}", full(source))]
    Write {
        /// The writer's error.
        source: io::Error,
    },
    /// A scratch file could not be made, written or read back.
    #[error("cannot {operation} \"{}\"{}", path.display(), full(source))]
    Scratch {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// [`Cancel::cancel`](crate::Cancel::cancel) was called.
    #[error("the export was cancelled")]
    Cancelled,
}

impl ExportError {
    pub(super) fn write(source: io::Error) -> Self {
        Self::Write { source }
    }

    /// Gives what the reader says the names of the image and of the entry.
    pub(super) fn reading(error: ReadError, image: &Path, entry: &[u8]) -> Self {
        let path = image.to_owned();
        match error {
            ReadError::Io(source) => Self::Read {
                operation: "read",
                path,
                source,
            },
            ReadError::NotExt4(why) => Self::NotExt4 { path, why },
            ReadError::Unclean => Self::Unclean { path },
            ReadError::Unsupported(what) => Self::Unsupported { path, what },
            ReadError::Damaged { ino, why } => Self::Damaged {
                entry: show(entry),
                inode: ino,
                why,
            },
            ReadError::UnsupportedInode { ino, what } => Self::UnsupportedEntry {
                entry: show(entry),
                inode: ino,
                what,
            },
            ReadError::Limit { limit, what } => Self::limit(entry, limit, what),
            ReadError::Cancelled => Self::Cancelled,
        }
    }

    pub(super) fn limit(entry: &[u8], limit: u64, what: &'static str) -> Self {
        Self::Limit {
            entry: show(entry),
            limit,
            what,
        }
    }
}

fn full(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; free some space there and export again",
        _ => "",
    }
}
