//! The JSON documents of an image, and how they are read: bounded, with their digest checked.
//!
//! Only what is needed is named; what else a document has is ignored, as the specification asks. A
//! document that could be read as two kinds is refused.

use std::collections::BTreeMap;
use std::io::Read;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::digest::Checked;
use super::{BlobDigest, Blobs, ImageError, Platform};

/// No document is longer than this, in bytes.
pub const MAX_DOCUMENT: u64 = 4 << 20;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The types of the documents that name an image, in the order in which a registry is asked for them.
pub const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    OCI_LAYER_GZIP,
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// What names a blob: its digest, its size in bytes, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: BlobDigest,
    /// Its length, in bytes.
    pub size: u64,
    #[serde(default, deserialize_with = "platform")]
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// What a media type is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    Index,
    Manifest,
    Config,
    Layer,
    /// A layer that its publisher allows nobody to hand on.
    Foreign,
    Unknown,
}

impl Descriptor {
    /// A descriptor from elsewhere: a registry's answer, for one.
    #[must_use]
    pub fn new(media_type: &str, digest: BlobDigest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: None,
        }
    }

    pub(super) fn kind(&self) -> MediaType {
        match self.media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => MediaType::Index,
            OCI_MANIFEST | DOCKER_MANIFEST => MediaType::Manifest,
            OCI_CONFIG | DOCKER_CONFIG => MediaType::Config,
            layer if LAYERS.contains(&layer) => MediaType::Layer,
            layer if layer.contains(".nondistributable.") || layer.contains(".foreign.") => {
                MediaType::Foreign
            }
            _ => MediaType::Unknown,
        }
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_str())
    }

    /// What build tools put beside the images of an index: statements about them.
    pub(super) fn is_attestation(&self) -> bool {
        let unknown = |platform: &Platform| platform.architecture() == "unknown";
        self.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
            || self.platform.as_ref().is_some_and(unknown)
    }

    /// Refuses the blob for what it is.
    pub(super) fn unsupported(&self, what: &'static str, hint: &'static str) -> ImageError {
        ImageError::Unsupported {
            what,
            name: self.digest.to_string(),
            media_type: crate::error::show(self.media_type.as_bytes()),
            hint,
        }
    }
}

fn platform<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Platform>, D::Error> {
    #[derive(Deserialize)]
    struct Written {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        variant: Option<String>,
    }
    let written = Option::<Written>::deserialize(from)?;
    Ok(written.map(|p| Platform::new(&p.os, &p.architecture, p.variant.as_deref())))
}

/// An image index, or Docker's manifest list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    schema_version: u32,
    media_type: Option<String>,
    pub(super) manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
    #[serde(default)]
    config: Option<IgnoredAny>,
}

/// A manifest of one image.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageManifest {
    schema_version: u32,
    media_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
}

impl Index {
    /// Reads an index that is no blob: `index.json` of a layout.
    pub(super) fn parse(bytes: &[u8], name: &str) -> Result<Self, ImageError> {
        let index: Self = parse(bytes, name)?;
        let ambiguous = index.layers.is_some() || index.config.is_some();
        let kind = index.media_type.as_deref();
        match (index.schema_version, kind) {
            (2, None | Some(OCI_INDEX | DOCKER_LIST)) if !ambiguous => Ok(index),
            _ => Err(ImageError::document(name, "it is no index of version 2")),
        }
    }
}

impl ImageManifest {
    fn check(&self, name: &str) -> Result<(), ImageError> {
        let kind = self.media_type.as_deref();
        match (self.schema_version, kind) {
            (2, None | Some(OCI_MANIFEST | DOCKER_MANIFEST)) if self.manifests.is_none() => Ok(()),
            _ => Err(ImageError::document(name, "it is no manifest of version 2")),
        }
    }
}

/// Reads an index by its descriptor.
pub(super) fn read_index(blobs: &dyn Blobs, from: &Descriptor) -> Result<Index, ImageError> {
    let bytes = read_blob(blobs, from, "index")?;
    Index::parse(&bytes, &format!("index {}", from.digest))
}

/// Reads a manifest by its descriptor.
pub(super) fn read_manifest(
    blobs: &dyn Blobs,
    from: &Descriptor,
) -> Result<ImageManifest, ImageError> {
    let bytes = read_blob(blobs, from, "manifest")?;
    let name = format!("manifest {}", from.digest);
    let manifest: ImageManifest = parse(&bytes, &name)?;
    manifest.check(&name)?;
    Ok(manifest)
}

/// Reads a document that a descriptor names.
pub(super) fn read_blob(
    blobs: &dyn Blobs,
    from: &Descriptor,
    what: &'static str,
) -> Result<Vec<u8>, ImageError> {
    if from.size > MAX_DOCUMENT {
        return Err(ImageError::DocumentTooLong {
            document: format!("{what} {}", from.digest),
            limit: MAX_DOCUMENT,
        });
    }
    let read = |source| ImageError::ReadBlob {
        digest: from.digest.to_string(),
        source,
    };
    let reader = blobs.open(&from.digest).map_err(read)?;
    let reader = reader.ok_or_else(|| ImageError::Missing {
        what,
        name: from.digest.to_string(),
    })?;
    let mut checked = Checked::new(reader, from.size, Some(&from.digest));
    let mut bytes = Vec::new();
    checked.read_to_end(&mut bytes).map_err(read)?;
    let (found, digest) = checked.finish().map_err(read)?;
    let expected = Expected {
        what,
        name: from.digest.to_string(),
        size: from.size,
        digest: Some(&from.digest),
    };
    expected.check(found, digest)?;
    Ok(bytes)
}

/// What a blob has to be.
pub(crate) struct Expected<'a> {
    pub(crate) what: &'static str,
    pub(crate) name: String,
    /// In bytes, as it is stored.
    pub(crate) size: u64,
    pub(crate) digest: Option<&'a BlobDigest>,
}

impl Expected<'_> {
    /// Compares it with what was read.
    pub(crate) fn check(self, size: u64, digest: Option<BlobDigest>) -> Result<(), ImageError> {
        if size != self.size {
            return Err(ImageError::Size {
                what: self.what,
                name: self.name,
                found: size,
                expected: self.size,
            });
        }
        match (digest, self.digest) {
            (Some(found), Some(expected)) if found != *expected => Err(ImageError::Digest {
                what: self.what,
                found,
                expected: expected.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// Reads a document that has no digest, off a reader.
pub(super) fn read_bounded(reader: impl Read, name: &str) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let most = MAX_DOCUMENT + 1;
    let read = reader.take(most).read_to_end(&mut bytes);
    read.map_err(|source| ImageError::Read {
        operation: "read",
        path: name.into(),
        source,
    })?;
    match bytes.len() as u64 > MAX_DOCUMENT {
        true => Err(ImageError::DocumentTooLong {
            document: name.to_owned(),
            limit: MAX_DOCUMENT,
        }),
        false => Ok(bytes),
    }
}

/// Reads JSON; what it has to say about damage is about places and types, never long.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let escaped = |c: char| match c.is_control() {
            true => c.escape_debug().collect(),
            false => c.to_string(),
        };
        let why: String = text.chars().take(200).map(escaped).collect();
        ImageError::document(name, why)
    })
}
