//! Root file systems: an image, a tar stream or a directory becomes one ext4 image.
//!
//! ```text
//!  image ── oci: config, layers ─┐
//!                                ▼                             ┌─ mke2fs: an empty file system
//!  tar (plain, compressed) ── tar::read ─────┐                 │
//!                                            ├─ Tree ── ext4 ──┤
//!  directory ──────────────── directory ─────┘  (memory)       └─ populate: inodes, names, data
//! ```
//!
//! Every source is first merged into a `Tree` in memory, where paths are plain map
//! look-ups: no name from outside is ever resolved by the host's kernel, so nothing can escape.
//! File contents stay where they are (a source directory) or go to one spool file (a tar, or the layers
//! of an image).
//! `mke2fs` then lays out an *empty* file system, and `ext4` writes the tree into it directly.
//! No helper program ever sees a name, nothing is mounted, and owners, device nodes, setuid bits and
//! capabilities need no privilege, since they are only bytes in the image.
//!
//! Where an earlier import has the lower layers of an image, its tree is read back from there (`base`), and only
//! the layers above are unpacked.
//!
//! The way back is `export`: `ext4::read` reads an image, whoever wrote into it, and its tree becomes a
//! tar or an OCI image of one layer, as it is read.
//!
//! ```text
//!  image ── ext4::read ── export ──┬─ a tar
//!                                  └─ an OCI archive: one layer, config, manifest, index
//! ```
//!
//! This crate owns the image's bytes and its digest. It must never follow a symbolic
//! link of a source, write outside [`Job::work_dir`], or leave a file at [`Job::output`] on failure.

mod base;
mod compression;
mod digest;
mod directory;
mod error;
mod export;
mod ext4;
mod import;
mod import_image;
mod job;
mod name;
mod node;
mod oci;
mod seal;
mod spool;
mod tar;
mod tree;

pub use base::Base;
pub use digest::{Digest, ParseDigestError, VerifyError, digest_file, verify_image};
pub use error::{ImportError, Refusal};
pub use export::{ExportError, ExportJob, Exported, ExportedImage, export_oci_archive, export_tar};
pub use ext4::{ReadSuperblockError, Superblock, read_superblock};
pub use import::{import_directory, import_tar};
pub use import_image::{check_image, import_image};
pub use job::{
    Cancel, Imported, Job, Limits, NoProgress, Owners, Phase, Progress, Sizing, Skipped,
};
pub use oci::{
    Archive, BlobDigest, BlobDirectory, Blobs, Descriptor, Hasher, Image, ImageConfig, ImageError,
    Layer, MANIFEST_TYPES, MAX_DOCUMENT, ParseBlobDigestError, ParsePlatformError, Platform,
};
pub use seal::{Sealed, seal_image};
