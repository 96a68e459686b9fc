//! Root file systems: a tar stream or a directory becomes one ext4 image.
//!
//! ```text
//!  tar (plain, gzip, zstd) ── tar::read ───┐                 ┌─ mke2fs: an empty file system
//!                                          ├─ Tree ── ext4 ──┤
//!  directory ──────────────── directory ───┘  (memory)       └─ populate: inodes, names, data
//! ```
//!
//! Every source is first merged into a `Tree` in memory, where paths are plain map
//! look-ups: no name from outside is ever resolved by the host's kernel, so nothing can escape.
//! File contents stay where they are (a source directory) or go to one spool file (a tar).
//! `mke2fs` then lays out an *empty* file system, and `ext4` writes the tree into it directly.
//! No helper program ever sees a name, nothing is mounted, and owners, device nodes, setuid bits and
//! capabilities need no privilege, since they are only bytes in the image.
//!
//! This crate owns the image's bytes, its digest and its manifest. It must never follow a symbolic
//! link of a source, write outside [`Job::work_dir`], or leave a file at [`Job::output`] on failure.

mod digest;
mod directory;
mod error;
mod ext4;
mod import;
mod job;
mod manifest;
mod name;
mod node;
mod seal;
mod spool;
mod tar;
mod tree;

pub use digest::{Digest, ParseDigestError, VerifyError, digest_file, verify_image};
pub use error::{ImportError, Refusal};
pub use ext4::{ReadSuperblockError, Superblock, read_superblock};
pub use import::{import_directory, import_tar};
pub use job::{
    Cancel, Imported, Job, Limits, NoProgress, Owners, Phase, Progress, Sizing, Skipped,
};
pub use manifest::{IMAGE_FILE, MANIFEST_FILE, Manifest, ManifestError, SourceKind};
pub use seal::{Sealed, seal_image};
