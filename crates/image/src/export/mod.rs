//! The way back: an ext4 image becomes a tar, or an OCI image of one layer.
//!
//! ```text
//!  image ── ext4::read ── walk ──┬─ content: stretches, holes ─┐
//!                                └─ member: headers, PAX ──────┴─ tar
//!                                                                  └─ oci: layer, documents, archive
//! ```
//!
//! The tree is read in the order of its names and written while it is read: what is held in memory is
//! the names of the directories on the way to the current one, and the first name of each file that
//! has several. The same image always gives the same bytes; nothing takes the time of day, the name of
//! the image, or who exports it.
//!
//! Nothing is mounted and no name from the image becomes a path of the host.

mod content;
mod error;
mod member;
mod oci;
mod walk;

use std::fs::File;
use std::io::Write;
use std::path::Path;

pub use self::error::ExportError;
use self::member::Writer;
pub use self::oci::{ExportedImage, export_oci_archive};
use self::walk::Walk;
use crate::ext4::read::Reader;
use crate::job::{Cancel, Limits, Phase, Progress, Skipped};

/// One export: where to work and within which bounds.
#[derive(Clone, Copy)]
pub struct ExportJob<'a> {
    /// An existing private directory for scratch files. Only [`export_oci_archive`] has one: the
    /// compressed layer, a file without a name.
    pub work_dir: &'a Path,
    /// Bounds on what the image may hold. [`Limits::max_layers`] has no meaning here.
    pub limits: Limits,
    /// Told how far the export is: [`Phase::Writing`] while the image is read, in bytes of the tar
    /// and entries, and for an image [`Phase::Sealing`] while the archive is put together, in bytes of
    /// it.
    pub progress: &'a dyn Progress,
    /// Asked, often, whether to stop.
    pub cancel: &'a Cancel,
}

/// What an export wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Length of what was written, in bytes.
    pub bytes: u64,
    /// Names in it, the root not counted: what [`Imported::entries`](crate::Imported::entries) of the
    /// same tree is.
    pub entries: u64,
    /// What of the image is not in it, and why: sockets, and attributes that cannot be told.
    pub skipped: Vec<Skipped>,
}

/// Writes all files of an ext4 image as a tar in the PAX format (POSIX.1-2001).
///
/// The root is `./`, the other names are relative and sorted by bytes, parents before their children.
/// An empty `lost+found` as `mke2fs` makes it is left out.
///
/// # Errors
/// [`ExportError`]; what was written until then has no end marker.
pub fn export_tar(
    image: &Path,
    to: impl Write,
    job: &ExportJob<'_>,
) -> Result<Exported, ExportError> {
    job.progress.phase(Phase::Writing, None);
    write_tree(image, to, job, false).map(|(exported, _)| exported)
}

/// Writes the tree; in a layer no name may be one that hides others. Gives the writer back.
fn write_tree<W: Write>(
    image: &Path,
    to: W,
    job: &ExportJob<'_>,
    is_layer: bool,
) -> Result<(Exported, W), ExportError> {
    let file = File::open(image).map_err(|source| ExportError::Read {
        operation: "open",
        path: image.to_owned(),
        source,
    })?;
    let reading = |error| ExportError::reading(error, image, b".");
    let reader = Reader::open(file, job.cancel).map_err(reading)?;
    let mut walk = Walk::new(&reader, image, Writer::new(to), *job, is_layer);
    walk.tree()?;
    let (mut writer, entries, skipped) = walk.into_parts();
    writer.end().map_err(ExportError::write)?;
    let exported = Exported {
        bytes: writer.bytes(),
        entries,
        skipped,
    };
    Ok((exported, writer.into_inner()))
}
