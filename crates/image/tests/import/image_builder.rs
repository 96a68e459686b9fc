//! Images in the making, in every form in which they come, with every mistake that can be made.

use std::path::Path;

use cowslip_image::{BlobDigest, Descriptor};
use serde_json::{Value, json};

use crate::support::{Archive, archive};

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Files of a layout, or members of an archive, in order; the last of one name counts.
#[derive(Default, Clone)]
pub(crate) struct Files(pub(crate) Vec<(String, Vec<u8>)>);

/// A descriptor in JSON.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    let digest = BlobDigest::of(bytes).to_string();
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

/// The config of an image of these layers, which are not compressed.
pub(crate) fn config(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|l| BlobDigest::of(l).to_string())
        .collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

impl Files {
    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) {
        self.0.push((name.to_owned(), bytes.to_vec()));
    }

    /// Adds a blob; gives its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = BlobDigest::of(bytes);
        self.file(&format!("blobs/sha256/{}", digest.hex()), bytes);
        descriptor(media_type, bytes)
    }

    pub(crate) fn json(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    /// Adds the blobs of an image; gives its manifest's descriptor.
    pub(crate) fn image(&mut self, config: &Value, layers: &[Value]) -> Value {
        let config = self.json(CONFIG, config);
        self.json(
            MANIFEST,
            &json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers }),
        )
    }

    /// Adds the files that make a layout of the blobs.
    pub(crate) fn layout(&mut self, manifests: &[Value]) {
        self.file("oci-layout", LAYOUT);
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.file("index.json", index.to_string().as_bytes());
    }

    /// A layout of one image whose layers are stored as they are.
    pub(crate) fn plain(layers: &[&[u8]]) -> Self {
        let mut files = Self::default();
        let stored: Vec<_> = layers
            .iter()
            .map(|layer| files.blob(LAYER, layer))
            .collect();
        let manifest = files.image(&config(layers), &stored);
        files.layout(&[manifest]);
        files
    }

    pub(crate) fn write(&self, directory: &Path) {
        for (name, bytes) in &self.0 {
            let path = directory.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    pub(crate) fn archive(&self) -> Archive {
        let add = |archive: Archive, (name, bytes): &(String, Vec<u8>)| archive.file(name, bytes);
        self.0.iter().fold(archive(), add)
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        self.archive().finish()
    }
}

/// As the reader has it.
pub(crate) fn parsed(descriptor: &Value) -> Descriptor {
    serde_json::from_value(descriptor.clone()).unwrap()
}
