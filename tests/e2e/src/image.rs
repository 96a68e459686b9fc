//! Container images that tests import: an OCI image layout in a directory, and archives of the same.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Registry, Tar};

/// An image in the making: its layers, the lowest first, and what it says of how it is run.
pub struct ContainerImage {
    layers: Vec<Vec<u8>>,
    config: Value,
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl ContainerImage {
    /// With one layer.
    #[must_use]
    pub fn new(layer: Vec<u8>) -> Self {
        Self {
            layers: vec![layer],
            config: json!({}),
        }
    }

    /// With one more layer.
    #[must_use]
    pub fn layer(mut self, layer: Tar) -> Self {
        self.layers.push(layer.bytes());
        self
    }

    /// With how it is run, in the words of the specification (`Env`, `Cmd`, …).
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    fn document(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| sha256(layer)).collect();
        let document = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        document.to_string().into_bytes()
    }

    /// Writes it as an OCI image layout with this tag.
    pub fn write_layout(&self, directory: &Path, tag: &str) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |kind: &str, bytes: &[u8]| {
            let digest = sha256(bytes);
            fs::write(blobs.join(&digest[7..]), bytes).unwrap();
            let media = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": media, "digest": digest, "size": bytes.len() })
        };
        let layers = self.layers.iter().map(|layer| blob("layer.v1.tar", layer));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("config.v1+json", &self.document()),
            "layers": layers.collect::<Vec<_>>(),
        });
        let mut entry = blob("manifest.v1+json", manifest.to_string().as_bytes());
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        fs::write(directory.join("index.json"), index.to_string()).unwrap();
        let marker = json!({ "imageLayoutVersion": "1.0.0" });
        fs::write(directory.join("oci-layout"), marker.to_string()).unwrap();
    }

    /// Puts it into a registry, as `REPOSITORY:TAG`.
    pub fn push(&self, registry: &Registry, name: &str) {
        let layout = tempfile::tempdir().unwrap();
        self.write_layout(layout.path(), "pushed");
        registry.push(layout.path(), "pushed", name);
    }

    /// It as `docker save` writes it.
    #[must_use]
    pub fn docker_archive(&self, tag: &str) -> Vec<u8> {
        let names: Vec<String> = (0..self.layers.len())
            .map(|index| format!("{index}/layer.tar"))
            .collect();
        let manifest = json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": names }]);
        let tar = Tar::default().file("config.json", 0o644, &self.document());
        let with_layer =
            |tar: Tar, (name, layer): (&String, &Vec<u8>)| tar.file(name, 0o644, layer);
        let tar = names.iter().zip(&self.layers).fold(tar, with_layer);
        tar.file("manifest.json", 0o644, manifest.to_string().as_bytes())
            .bytes()
    }

    /// It as an OCI image layout in a tar, which is written below `scratch` first.
    #[must_use]
    pub fn oci_archive(&self, scratch: &Path, tag: &str) -> Vec<u8> {
        let directory: PathBuf = scratch.join("layout-to-pack");
        self.write_layout(&directory, tag);
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all("", &directory).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        builder.into_inner().unwrap()
    }
}
