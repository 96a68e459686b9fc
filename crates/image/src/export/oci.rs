//! An OCI image of one layer, as a tar of its layout.
//!
//! The layer's size and digest are in documents that come before it, so it is written to a scratch
//! file first; no layer is ever in memory as a whole.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde::Serialize;

use super::member::{Flag, Member, Writer};
use super::{ExportError, ExportJob, Exported, write_tree};
use crate::error::show;
use crate::job::Phase;
use crate::oci::{
    BlobDigest, Hasher, ImageConfig, OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST,
};
use crate::spool::CHUNK;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const BLOBS: &str = "blobs/sha256/";

/// What an export as an image wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedImage {
    /// The digest of its manifest: what the image is called by in a registry.
    pub manifest: BlobDigest,
    /// The digest of its layer, compressed.
    pub layer: BlobDigest,
    /// Length of the whole archive in bytes, entries of the layer, and what was left out.
    pub exported: Exported,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'static str,
    digest: &'a BlobDigest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<WrittenPlatform<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations<'a>>,
}

#[derive(Serialize)]
struct WrittenPlatform<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
}

#[derive(Serialize)]
struct Annotations<'a> {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor<'a>,
    layers: [Descriptor<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'static str,
    manifests: [Descriptor<'a>; 1],
}

impl<'a> Descriptor<'a> {
    fn new(media_type: &'static str, digest: &'a BlobDigest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            platform: None,
            annotations: None,
        }
    }
}

/// Writes an ext4 image as an OCI image of one layer, compressed with gzip: an archive of an image
/// layout, in which the image is called `tag`. `config` says how it is run, and for which platform it is.
///
/// The same image, config and tag give the same bytes in every run of one version of this program;
/// another may compress differently.
///
/// # Errors
/// [`ExportError`]; what was written until then is no whole archive. A name that begins with `.wh.` is
/// an error: in a layer it would hide another.
pub fn export_oci_archive(
    image: &Path,
    config: &ImageConfig,
    tag: &str,
    to: impl Write,
    job: &ExportJob<'_>,
) -> Result<ExportedImage, ExportError> {
    check_tag(tag)?;
    config.check().map_err(ExportError::Config)?;
    job.progress.phase(Phase::Writing, None);
    let mut layer = Layer::spool(image, job)?;
    let config_bytes = config.to_document(std::slice::from_ref(&layer.diff_id));
    let config_digest = BlobDigest::of(&config_bytes);
    let manifest_bytes = json(&Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config: Descriptor::new(OCI_CONFIG, &config_digest, config_bytes.len() as u64),
        layers: [Descriptor::new(OCI_LAYER_GZIP, &layer.digest, layer.size)],
    })?;
    let manifest = BlobDigest::of(&manifest_bytes);
    let index = json(&Index {
        schema_version: 2,
        media_type: OCI_INDEX,
        manifests: [Descriptor {
            platform: Some(WrittenPlatform {
                architecture: config.platform.architecture(),
                os: config.platform.os(),
                variant: config.platform.variant(),
            }),
            annotations: Some(Annotations { name: tag }),
            ..Descriptor::new(OCI_MANIFEST, &manifest, manifest_bytes.len() as u64)
        }],
    })?;
    job.progress.phase(Phase::Sealing, Some(layer.size));
    let mut writer = Writer::new(to);
    let blob = |digest: &BlobDigest| format!("{BLOBS}{}", digest.hex()).into_bytes();
    let mut write = || {
        whole(&mut writer, b"oci-layout", LAYOUT)?;
        whole(&mut writer, b"index.json", &index)?;
        for directory in ["blobs/", BLOBS] {
            writer.begin(&Member {
                flag: Flag::Directory,
                mode: 0o755,
                ..Member::plain(directory.as_bytes(), 0)
            })?;
        }
        whole(&mut writer, &blob(&manifest), &manifest_bytes)?;
        whole(&mut writer, &blob(&config_digest), &config_bytes)?;
        writer.begin(&Member::plain(&blob(&layer.digest), layer.size))
    };
    write().map_err(ExportError::write)?;
    layer.copy(&mut writer, job)?;
    let end = writer.pad(layer.size).and_then(|()| writer.end());
    end.map_err(ExportError::write)?;
    Ok(ExportedImage {
        manifest,
        layer: layer.digest,
        exported: Exported {
            bytes: writer.bytes(),
            ..layer.exported
        },
    })
}

fn json(document: &impl Serialize) -> Result<Vec<u8>, ExportError> {
    serde_json::to_vec(document).map_err(|error| ExportError::write(error.into()))
}

fn whole<W: Write>(writer: &mut Writer<W>, name: &[u8], bytes: &[u8]) -> io::Result<()> {
    let size = bytes.len() as u64;
    writer.begin(&Member::plain(name, size))?;
    writer.data(bytes)?;
    writer.pad(size)
}

/// The characters that the specification lets a reference have.
fn check_tag(tag: &str) -> Result<(), ExportError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:@/+".contains(&byte);
    let starts = tag
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    match starts && tag.len() <= 255 && tag.bytes().all(plain) {
        true => Ok(()),
        false => Err(ExportError::Tag(show(tag.as_bytes()))),
    }
}

/// The compressed layer, in a file without a name.
struct Layer {
    file: File,
    path: PathBuf,
    /// Compressed, in bytes.
    size: u64,
    digest: BlobDigest,
    /// The digest of what it decompresses to.
    diff_id: BlobDigest,
    exported: Exported,
}

impl Layer {
    fn spool(image: &Path, job: &ExportJob<'_>) -> Result<Self, ExportError> {
        let path = job.work_dir.join("layer");
        let scratch = |operation| {
            let path = path.clone();
            move |source| ExportError::Scratch {
                operation,
                path,
                source,
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(scratch("create"))?;
        std::fs::remove_file(&path).map_err(scratch("unlink"))?;
        let stored = Hashing::new(BufWriter::with_capacity(CHUNK, file));
        // No name, no time and no system in the header: they are not the image's.
        let encoder: GzEncoder<_> = GzBuilder::new().write(stored, Compression::default());
        let (exported, content) =
            write_tree(image, Hashing::new(encoder), job, true).map_err(|error| match error {
                ExportError::Write { source } => scratch("write")(source),
                other => other,
            })?;
        let diff_id = content.hasher.finish();
        let stored = content.inner.finish().map_err(scratch("write"))?;
        let (digest, size) = (stored.hasher.finish(), stored.bytes);
        let flushed = stored.inner.into_inner().map_err(|e| e.into_error());
        let mut file = flushed.map_err(scratch("write"))?;
        file.rewind().map_err(scratch("rewind"))?;
        Ok(Self {
            file,
            path,
            size,
            digest,
            diff_id,
            exported,
        })
    }

    fn copy<W: Write>(
        &mut self,
        writer: &mut Writer<W>,
        job: &ExportJob<'_>,
    ) -> Result<(), ExportError> {
        let mut buffer = vec![0; CHUNK];
        let mut left = self.size;
        while left > 0 {
            if job.cancel.is_cancelled() {
                return Err(ExportError::Cancelled);
            }
            let take = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let chunk = &mut buffer[..take];
            let read = self.file.read_exact(chunk);
            read.map_err(|source| ExportError::Scratch {
                operation: "read back",
                path: self.path.clone(),
                source,
            })?;
            writer.data(chunk).map_err(ExportError::write)?;
            left -= take as u64;
            job.progress
                .advance(self.size - left, self.exported.entries);
        }
        Ok(())
    }
}

/// Hashes and counts what is written through it.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::sha256(),
            bytes: 0,
        }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
