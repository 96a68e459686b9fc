//! One image: its config, and its layers in order, each with what it must hash to.

use std::fmt;
use std::io::Read;
use std::path::Path;

use super::archive::Section;
use super::documents::{self, Descriptor, Index, MediaType, read_blob, read_manifest};
use super::{Archive, BlobDigest, BlobDirectory, Blobs, ImageConfig, ImageError, Platform};
use super::{docker, select};
use crate::Digest;

const LAYOUT: &str = "OCI image layout";
const LAYOUT_FILE: &str = "oci-layout";
const INDEX_FILE: &str = "index.json";

/// An image that can be imported: its documents are read and checked, its layers not yet.
pub struct Image {
    digest: Option<BlobDigest>,
    config: ImageConfig,
    layers: Vec<Layer>,
    store: Store,
}

/// One layer, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its digest, or where the archive gives none, its name there.
    pub name: String,
    /// What its bytes hash to as they are stored; some archives do not say.
    pub digest: Option<BlobDigest>,
    /// What its bytes hash to when they are decompressed.
    pub diff_id: BlobDigest,
    /// Its length as it is stored, in bytes.
    pub size: u64,
}

/// What the layers are read from.
pub(super) enum Store {
    Blobs(Box<dyn Blobs>),
    /// Layers are members with the names that they have.
    Members(Archive),
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("digest", &self.digest)
            .field("config", &self.config)
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// An image of an OCI image layout, a directory.
    ///
    /// # Errors
    /// [`ImageError`], for what is no layout, has no such tag or platform, or is damaged.
    pub fn from_layout(
        path: &Path,
        tag: Option<&str>,
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let blobs = BlobDirectory::open_below(path, "blobs/")?;
        let read = |name: &str| {
            let failed = |source| ImageError::Read {
                operation: "read",
                path: blobs.path().join(name),
                source,
            };
            match blobs.file(name).map_err(failed)? {
                Some(file) => documents::read_bounded(file, name).map(Some),
                None => Ok(None),
            }
        };
        let index = layout_index(read, false)?;
        Self::from_index(Box::new(blobs), index, tag, platform)
    }

    /// An image of an OCI image layout in a tar.
    ///
    /// # Errors
    /// As [`Self::from_layout`].
    pub fn from_oci_archive(
        archive: Archive,
        tag: Option<&str>,
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let read = |name: &str| match archive.find(name)? {
            Some(section) => documents::read_bounded(section, name).map(Some),
            None => Ok(None),
        };
        let index = layout_index(read, archive.has(docker::MANIFEST_FILE))?;
        Self::from_index(Box::new(archive), index, tag, platform)
    }

    /// An image of an archive that `docker save` wrote, in any of its forms.
    ///
    /// The tag is a whole reference (`debian:12`), or the part behind the colon.
    ///
    /// # Errors
    /// As [`Self::from_layout`].
    pub fn from_docker_archive(
        archive: Archive,
        tag: Option<&str>,
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let (config, layers) = docker::select(&archive, tag, platform)?;
        Ok(Self {
            digest: None,
            config,
            layers,
            store: Store::Members(archive),
        })
    }

    /// An image by the descriptor of its manifest or index: of a registry, whose blobs are got when
    /// they are asked for, or of a cache.
    ///
    /// Documents are asked for here. Layers are asked for by [`crate::import_image`] only, so that a
    /// caller may get them all at once in between ([`Self::layers`]).
    ///
    /// # Errors
    /// As [`Self::from_layout`].
    pub fn from_blobs(
        blobs: Box<dyn Blobs>,
        root: Descriptor,
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let descriptor = select::find(&*blobs, vec![root], platform)?;
        Self::from_manifest(blobs, &descriptor, platform)
    }

    fn from_index(
        blobs: Box<dyn Blobs>,
        index: Index,
        tag: Option<&str>,
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let candidates = select::tagged(index.manifests, tag)?;
        let descriptor = select::find(&*blobs, candidates, platform)?;
        Self::from_manifest(blobs, &descriptor, platform)
    }

    fn from_manifest(
        blobs: Box<dyn Blobs>,
        descriptor: &Descriptor,
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let manifest = read_manifest(&*blobs, descriptor)?;
        if manifest.config.kind() != MediaType::Config {
            let hint = "; it is no image that can be run";
            return Err(manifest.config.unsupported("config", hint));
        }
        for layer in &manifest.layers {
            match layer.kind() {
                MediaType::Layer => {}
                MediaType::Foreign => {
                    let hint = "; it is not part of the image, and is not got from elsewhere";
                    return Err(layer.unsupported("layer", hint));
                }
                _ => return Err(layer.unsupported("layer", "")),
            }
        }
        let bytes = read_blob(&*blobs, &manifest.config, "config")?;
        let name = format!("config {}", manifest.config.digest);
        let (config, diff_ids) = ImageConfig::read(&bytes, &name)?;
        select::check_platform(&config.platform, platform)?;
        check_layer_count(manifest.layers.len(), diff_ids.len())?;
        let layer = |(layer, diff_id): (Descriptor, BlobDigest)| Layer {
            name: layer.digest.to_string(),
            digest: Some(layer.digest),
            diff_id,
            size: layer.size,
        };
        Ok(Self {
            digest: Some(descriptor.digest.clone()),
            config,
            layers: manifest
                .layers
                .into_iter()
                .zip(diff_ids)
                .map(layer)
                .collect(),
            store: Store::Blobs(blobs),
        })
    }

    /// The digest of the image's manifest; an archive of Docker's has none.
    #[must_use]
    pub fn digest(&self) -> Option<&BlobDigest> {
        self.digest.as_ref()
    }

    /// How the image is run.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The layers, the lowest first. A layer may be there more than once.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// SHA-256 of the digests of the layers' contents, in their order: images that have it in common have the same
    /// files, however they are stored.
    #[must_use]
    pub fn content(&self) -> Digest {
        self.content_of_lowest(self.layers.len())
    }

    /// As [`Self::content`], of an image of no more than the lowest `count` layers of this one.
    #[must_use]
    pub fn content_of_lowest(&self, count: usize) -> Digest {
        let lines = self
            .layers
            .iter()
            .take(count)
            .map(|layer| format!("{}\n", layer.diff_id));
        Digest::of(lines.collect::<String>().as_bytes())
    }

    /// Opens a layer as it is stored.
    pub(crate) fn open(&self, layer: &Layer) -> Result<Box<dyn Read + '_>, ImageError> {
        let found = match (&self.store, &layer.digest) {
            (Store::Blobs(blobs), Some(digest)) => {
                blobs.open(digest).map_err(|source| ImageError::ReadBlob {
                    digest: digest.to_string(),
                    source,
                })?
            }
            (Store::Blobs(_), None) => None,
            (Store::Members(archive), _) => archive
                .find(&layer.name)?
                .map(|section: Section<'_>| Box::new(section) as Box<dyn Read>),
        };
        found.ok_or_else(|| ImageError::Missing {
            what: "layer",
            name: crate::error::show(layer.name.as_bytes()),
        })
    }
}

pub(super) fn check_layer_count(layers: usize, diff_ids: usize) -> Result<(), ImageError> {
    match layers == diff_ids {
        true => Ok(()),
        false => Err(ImageError::LayerCount { layers, diff_ids }),
    }
}

/// Reads the two files that make a layout one.
fn layout_index(
    read: impl Fn(&str) -> Result<Option<Vec<u8>>, ImageError>,
    has_docker_manifest: bool,
) -> Result<Index, ImageError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let missing = |name: &str| {
        let hint = match has_docker_manifest {
            true => "; it has manifest.json, import it as docker-archive",
            false => "",
        };
        ImageError::NotAnImage {
            expected: LAYOUT,
            why: format!("it has no {name}{hint}"),
        }
    };
    let marker = read(LAYOUT_FILE)?.ok_or_else(|| missing(LAYOUT_FILE))?;
    let marker: Marker = documents::parse(&marker, LAYOUT_FILE)?;
    if !marker.image_layout_version.starts_with("1.") {
        let version = crate::error::show(marker.image_layout_version.as_bytes());
        return Err(ImageError::NotAnImage {
            expected: LAYOUT,
            why: format!("its version is \"{version}\", this program reads 1.0.0"),
        });
    }
    let index = read(INDEX_FILE)?.ok_or_else(|| missing(INDEX_FILE))?;
    Index::parse(&index, INDEX_FILE)
}
