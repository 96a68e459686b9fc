//! The import of an image: its layers, one on another, and each held to its digests.

use crate::base::{Base, OpenBase};
use crate::error::ImportError;
use crate::import::{build_spooled, refuse_existing, watch};
use crate::job::{Imported, Job, Phase, Skipped};
use crate::oci::{Checked, Expected, Hasher, Image, ImageError, Layer};
use crate::spool::Spool;
use crate::tar::{self, Destination};
use crate::tree::Tree;

/// Makes an image of a container image, layer by layer.
///
/// The same layers give the same bytes, wherever they come from and however they are compressed, on a base
/// or not. With a base, its layers are neither opened nor checked: the base has them. It must be of the same
/// layers as the lowest of this image ([`Image::content_of_lowest`]).
/// [`Image::config`] is not in the result, and is the template's to keep.
///
/// # Errors
/// [`ImportError`]; nothing is at the output then. What concerns one layer is
/// [`ImportError::Layer`].
pub fn import_image(
    image: &Image,
    base: Option<&Base>,
    job: &Job<'_>,
) -> Result<Imported, ImportError> {
    refuse_existing(job.output)?;
    let mut skipped = Vec::new();
    job.progress.phase(Phase::Reading, None);
    let mut tree = Tree::new(job.limits);
    let mut have = 0;
    let base = match base {
        None => None,
        Some(base) => {
            let open = OpenBase::open(base, job)?;
            open.read_into(&mut tree, job)?;
            have = base.layers;
            Some(open)
        }
    };
    let (tree, spool) = merge(image, have, tree, job, &mut skipped)?;
    build_spooled(job, tree, spool, base, skipped)
}

/// Reads all layers of an image as [`import_image`] does, with every check but those of the file system
/// writer, and makes nothing of them. Gives the number of entries of all layers.
///
/// # Errors
/// As [`import_image`].
pub fn check_image(image: &Image, job: &Job<'_>) -> Result<u64, ImportError> {
    job.progress.phase(Phase::Reading, None);
    let tree = Tree::new(job.limits);
    let (tree, _) = merge(image, 0, tree, job, &mut Vec::new())?;
    Ok(tree.entries())
}

/// Puts the layers on a tree that has the lowest `have` of them.
fn merge(
    image: &Image,
    have: usize,
    mut tree: Tree,
    job: &Job<'_>,
    skipped: &mut Vec<Skipped>,
) -> Result<(Tree, Spool), ImportError> {
    let count = image.layers().len();
    if count > job.limits.max_layers {
        let (limit, what) = (job.limits.max_layers as u64, "layers");
        return Err(ImageError::TooMany { limit, what }.into());
    }
    let mut spool = Spool::create(job.work_dir)?;
    let mut before = 0;
    for (index, layer) in image.layers().iter().enumerate().skip(have) {
        let to = Destination {
            tree: &mut tree,
            spool: &mut spool,
            watch: watch(job),
            skipped,
            before,
        };
        before += read_layer(image, layer, to).map_err(|error| match error {
            ImportError::Cancelled | ImportError::Write { .. } => error,
            other => ImportError::Layer {
                number: index + 1,
                count,
                name: crate::error::show(layer.name.as_bytes()),
                source: Box::new(other),
            },
        })?;
    }
    Ok((tree, spool))
}

/// Reads one layer, and gives its decompressed length in bytes.
fn read_layer(image: &Image, layer: &Layer, to: Destination<'_>) -> Result<u64, ImportError> {
    let mut reader = Checked::new(image.open(layer)?, layer.size, layer.digest.as_ref());
    let read = tar::read_layer(&mut reader, Hasher::like(&layer.diff_id), to);
    if read.as_ref().is_err_and(|error| !may_be_damage(error)) {
        return read.map(|(_, bytes)| bytes);
    }
    // What looks like a damaged archive is rather a damaged copy of it.
    let failed = |source| ImageError::ReadBlob {
        digest: crate::error::show(layer.name.as_bytes()),
        source,
    };
    match reader.finish().map_err(failed) {
        Ok((found, digest)) => {
            let expected = Expected {
                what: "layer",
                name: crate::error::show(layer.name.as_bytes()),
                size: layer.size,
                digest: layer.digest.as_ref(),
            };
            expected.check(found, digest)?;
        }
        Err(error) if read.is_ok() => return Err(error.into()),
        Err(_) => {}
    }
    let (hasher, bytes) = read?;
    match hasher.map(Hasher::finish) {
        Some(found) if found != layer.diff_id => Err(ImageError::Digest {
            what: "content of the layer",
            found,
            expected: layer.diff_id.clone(),
        }
        .into()),
        _ => Ok(bytes),
    }
}

fn may_be_damage(error: &ImportError) -> bool {
    matches!(
        error,
        ImportError::NotATar(_)
            | ImportError::Truncated(_)
            | ImportError::TrailingData
            | ImportError::Corrupt { .. }
            | ImportError::ReadTar { .. }
    )
}
