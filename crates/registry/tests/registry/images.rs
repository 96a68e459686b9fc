//! Images as a registry has them.

use std::io::Write as _;

use cowslip_image::BlobDigest;
use serde_json::{Value, json};

use crate::peer::Files;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A compressed layer.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) bytes: Vec<u8>,
    diff_id: BlobDigest,
}

impl Layer {
    pub(crate) fn digest(&self) -> BlobDigest {
        BlobDigest::of(&self.bytes)
    }

    /// The end of its path.
    pub(crate) fn path(&self) -> String {
        format!("/blobs/{}", self.digest())
    }
}

/// A layer with one file that does not compress, of about so many bytes.
pub(crate) fn layer(name: &str, size: usize) -> Layer {
    let mut state = name
        .bytes()
        .fold(1_u64, |sum, byte| sum.wrapping_mul(257) ^ u64::from(byte));
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    let content: Vec<u8> = (0..size).map(|_| noise()).collect();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, &content[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    Layer {
        bytes: gzip.finish().unwrap(),
        diff_id: BlobDigest::of(&tar),
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": BlobDigest::of(bytes).to_string(), "size": bytes.len() })
}

/// Adds a document under a name of the repository `a/b`; gives its descriptor.
fn put(files: &mut Files, below: &str, kind: &str, bytes: &[u8]) -> Value {
    let path = format!("/v2/a/b/{below}/{}", BlobDigest::of(bytes));
    files.insert(path, (kind.to_owned(), bytes.to_vec()));
    descriptor(kind, bytes)
}

/// Adds an image, and gives its manifest.
pub(crate) fn image(files: &mut Files, architecture: &str, layers: &[Layer]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(files, "blobs", CONFIG, config.to_string().as_bytes());
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            put(files, "blobs", "application/octet-stream", &layer.bytes);
            descriptor(LAYER, &layer.bytes)
        })
        .collect();
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let manifest = manifest.to_string().into_bytes();
    put(files, "manifests", MANIFEST, &manifest);
    manifest
}

pub(crate) fn tag(files: &mut Files, tag: &str, kind: &str, bytes: &[u8]) {
    files.insert(
        format!("/v2/a/b/manifests/{tag}"),
        (kind.to_owned(), bytes.to_vec()),
    );
    put(files, "manifests", kind, bytes);
}

/// A registry's files with the image `a/b:latest` of these layers, for one platform.
pub(crate) fn single(layers: &[Layer]) -> Files {
    let mut files = Files::new();
    let manifest = image(&mut files, "amd64", layers);
    tag(&mut files, "latest", MANIFEST, &manifest);
    files
}

/// The same for two platforms, of which one has other layers.
pub(crate) fn double(amd64: &[Layer], arm64: &[Layer]) -> Files {
    let mut files = Files::new();
    let entry = |files: &mut Files, architecture: &str, layers: &[Layer]| {
        let manifest = image(files, architecture, layers);
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let entries = [
        entry(&mut files, "amd64", amd64),
        entry(&mut files, "arm64", arm64),
    ];
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    tag(&mut files, "latest", INDEX, index.to_string().as_bytes());
    files
}
