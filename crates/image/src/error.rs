//! Why an import fails, in words for the user.

use std::io;
use std::path::{Path, PathBuf};

/// Why an import failed. Nothing is left at the output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// An entry has a name or a shape that an image must not have.
    #[error("refused entry \"{entry}\": {why}")]
    Refused {
        /// The entry, escaped for display.
        entry: String,
        /// What is wrong with it.
        why: Refusal,
    },
    /// A bound of [`Limits`](crate::Limits) was crossed.
    #[error(
        "entry \"{entry}\" crosses the limit of {limit} {what}; raise the limit or import less"
    )]
    Limit {
        /// The entry that crossed it, escaped for display.
        entry: String,
        /// The limit.
        limit: u64,
        /// What was counted.
        what: &'static str,
    },
    /// The stream is neither a tar nor one compressed with gzip, zstd or xz.
    #[error("the input is not a tar archive (plain, gzip, zstd or xz): {0}")]
    NotATar(&'static str),
    /// The stream ends too early.
    #[error("the tar is truncated: it ends {0}; fetch or make it again")]
    Truncated(String),
    /// Something that is not padding follows the end of the archive.
    #[error(
        "the tar is followed by other data after its end marker; is it several archives joined?"
    )]
    TrailingData,
    /// The archive contradicts itself.
    #[error("the tar is damaged {at}: {why}")]
    Corrupt {
        /// Where.
        at: String,
        /// What is wrong.
        why: String,
    },
    /// The stream could not be read or decompressed.
    #[error("cannot read the tar {at}")]
    ReadTar {
        /// Where.
        at: String,
        /// The reader's or the decompressor's error.
        source: io::Error,
    },
    /// A layer of an image could not be put on those before it.
    #[error("layer {number} of {count} ({name})")]
    Layer {
        /// Which, counted from 1.
        number: usize,
        /// How many the image has.
        count: usize,
        /// Its digest, or its name in the archive.
        name: String,
        /// Why.
        source: Box<ImportError>,
    },
    /// What an earlier import made of the lower layers cannot be gone on from.
    #[error(
        "cannot build on \"{}\", the image of a template that has the lower layers: \"{entry}\": {why}; remove \
         that template, then import again",
        image.display()
    )]
    Base {
        /// The template's image.
        image: PathBuf,
        /// The entry in it, escaped for display; `.` is the root.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// The image itself, its documents or its digests.
    #[error(transparent)]
    Image(#[from] crate::oci::ImageError),
    /// The source has no entries at all.
    #[error("the source is empty; a root file system needs at least one entry")]
    Empty,
    /// Something in the source directory could not be read.
    #[error("cannot {operation} \"{}\"{}", path.escape_debug(), hint(source))]
    ReadSource {
        /// What was tried.
        operation: &'static str,
        /// The path below the source directory, or the directory itself.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The source directory changed while it was being read.
    #[error("\"{path}\" changed while it was being imported; import a tree that is not in use")]
    Changed {
        /// The path below the source directory, escaped for display.
        path: String,
    },
    /// There is already something at the output.
    #[error("the output \"{}\" exists already", .0.display())]
    OutputExists(PathBuf),
    /// `mke2fs` is not installed.
    #[error("mke2fs was not found on PATH or in /usr/sbin; install the package e2fsprogs")]
    Mke2fsMissing,
    /// `mke2fs` failed.
    #[error("mke2fs failed ({status}): {stderr}")]
    Mke2fs {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        stderr: String,
    },
    /// `mke2fs` made a file system other than the one asked for.
    #[error("mke2fs made an unexpected layout: {0}; e2fsprogs 1.46 or newer is needed")]
    Layout(&'static str),
    /// `e2fsck` is not installed.
    #[error("e2fsck was not found on PATH or in /usr/sbin; install the package e2fsprogs")]
    E2fsckMissing,
    /// A disk's file system has more wrong with it than a mount would mend.
    #[error(
        "the disk's file system is damaged, or is not ext4 ({status}): {output}; look at it in a \
         sandbox"
    )]
    E2fsck {
        /// `e2fsck`'s exit status.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A disk without an ext4 file system.
    #[error("the disk holds no ext4 file system: {0}")]
    NotExt4(&'static str),
    /// A scratch file or the image could not be written.
    #[error("cannot {operation} \"{}\"{}", path.display(), full(source))]
    Write {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The tree does not fit an ext4 file system of the computed size.
    #[error("the content does not fit: {0}")]
    TooLarge(&'static str),
    /// [`Cancel::cancel`](crate::Cancel::cancel) was called.
    #[error("the import was cancelled")]
    Cancelled,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A name with `..` in it.
    #[error("its path contains \"..\"")]
    ParentComponent,
    /// A path that starts at `/`.
    #[error("its path is absolute; make the tar with relative names")]
    Absolute,
    /// A newline, NUL or another control character.
    #[error("its name contains a control character")]
    ControlCharacter,
    /// A name over 255 bytes.
    #[error("a component of its path is longer than 255 bytes")]
    NameTooLong,
    /// A name that is empty.
    #[error("its name is empty")]
    EmptyName,
    /// A path that goes through a symbolic link of the same tree.
    #[error("its path goes through a symbolic link; nothing is written through links")]
    ThroughSymlink,
    /// A path that goes through something that is no directory.
    #[error("its path goes through something that is not a directory")]
    ThroughNonDirectory,
    /// The root of the tree as something else than a directory.
    #[error("the root must be a directory")]
    RootNotDirectory,
    /// ext4 keeps this name for itself.
    #[error("ext4 needs \"lost+found\" to be a directory")]
    LostAndFound,
    /// A symbolic link that points nowhere, or too far.
    #[error("its symbolic link target is empty, over 4095 bytes, or contains NUL")]
    BadLinkTarget,
    /// A hard link to something that the tree does not have.
    #[error("it is a hard link to an entry that does not come before it")]
    MissingLinkTarget,
    /// A hard link to a directory.
    #[error("it is a hard link to a directory")]
    LinkToDirectory,
    /// More hard links than ext4 can count.
    #[error("it has more than 65000 hard links")]
    TooManyLinks,
    /// A file larger than ext4 can hold.
    #[error("it is larger than ext4 can hold (16 TiB)")]
    FileTooLarge,
    /// A name of a layer that begins with `.wh.` and hides nothing that there can be.
    #[error(
        "it is a malformed whiteout: names beginning with \".wh.\" hide other names in a layer"
    )]
    MalformedWhiteout,
    /// A device number beyond what Linux has.
    #[error("its device number is out of range")]
    BadDevice,
}

impl ImportError {
    pub(crate) fn refused(entry: &[u8], why: Refusal) -> Self {
        Self::Refused {
            entry: show(entry),
            why,
        }
    }

    pub(crate) fn limit(entry: &[u8], limit: u64, what: &'static str) -> Self {
        Self::Limit {
            entry: show(entry),
            limit,
            what,
        }
    }

    pub(crate) fn read_source(
        operation: &'static str,
        path: &[u8],
        source: impl Into<io::Error>,
    ) -> Self {
        Self::ReadSource {
            operation,
            path: String::from_utf8_lossy(path).into_owned(),
            source: source.into(),
        }
    }

    pub(crate) fn write(
        operation: &'static str,
        path: &Path,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Write {
            operation,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// A path for display: printable characters as they are, the rest escaped, and not too long.
pub(crate) fn show(path: &[u8]) -> String {
    const MOST: usize = 200;
    let text: String = String::from_utf8_lossy(path).escape_debug().collect();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; import as a user who may read it",
        _ => "",
    }
}

fn full(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; free some space there and import again",
        _ => "",
    }
}
