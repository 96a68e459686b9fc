//! What `docker save` writes: `manifest.json` names the config and the layers of each image.
//!
//! The old form has a directory for each layer with a `layer.tar`, which may be a link to another's.
//! The newer one is an OCI image layout as well, whose blobs are named after their digests. Neither
//! gives the sizes and digests of all members: layers are held to the digests in the config, and a
//! member whose name is a digest to that as well.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::documents::{parse, read_bounded};
use super::image::{Layer, check_layer_count};
use super::select::{check_platform, list};
use super::{Archive, BlobDigest, ImageConfig, ImageError, Platform};
use crate::error::show;

pub(super) const MANIFEST_FILE: &str = "manifest.json";

/// One image of the archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The image that a tag and a platform mean: its config and its layers, named as the members are.
pub(super) fn select(
    archive: &Archive,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<(ImageConfig, Vec<Layer>), ImageError> {
    let manifest = archive.find(MANIFEST_FILE)?.ok_or_else(|| {
        let hint = match archive.has("index.json") {
            true => "; it has index.json, import it as oci-archive",
            false => "",
        };
        ImageError::NotAnImage {
            expected: "docker archive",
            why: format!("it has no {MANIFEST_FILE}{hint}"),
        }
    })?;
    let bytes = read_bounded(manifest, MANIFEST_FILE)?;
    let images: Vec<Saved> = parse(&bytes, MANIFEST_FILE)?;
    let names: BTreeSet<String> = images
        .iter()
        .flat_map(|image| image.repo_tags.iter().flatten())
        .map(|tag| show(tag.as_bytes()))
        .collect();
    let meant: Vec<&Saved> = match tag {
        None => images.iter().collect(),
        Some(tag) => images
            .iter()
            .filter(|image| {
                image
                    .repo_tags
                    .iter()
                    .flatten()
                    .any(|name| means(tag, name))
            })
            .collect(),
    };
    match (&meant[..], tag) {
        ([], Some(tag)) => Err(ImageError::NoSuchTag {
            tag: show(tag.as_bytes()),
            available: list(&names),
        }),
        ([], None) => Err(ImageError::NotAnImage {
            expected: "docker archive",
            why: format!("its {MANIFEST_FILE} names no image"),
        }),
        ([one], _) => {
            let (config, diff_ids) = read_config(archive, one)?;
            check_platform(&config.platform, platform)?;
            Ok((config, layers(archive, one, diff_ids)?))
        }
        _ => Err(ImageError::Ambiguous {
            available: list(&names),
        }),
    }
}

/// Whether a tag that was asked for means an image of this name.
fn means(tag: &str, name: &str) -> bool {
    let short = |name: &str| {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        name.strip_prefix("library/").unwrap_or(name).to_owned()
    };
    let (tag, name) = (short(tag), short(name));
    // A colon before a slash is a registry's port.
    let end = name.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, version) = match name[end..].find(':') {
        Some(colon) => (&name[..end + colon], &name[end + colon + 1..]),
        None => (&name[..], "latest"),
    };
    tag == name || tag == version || (tag == repository && version == "latest")
}

fn read_config(
    archive: &Archive,
    image: &Saved,
) -> Result<(ImageConfig, Vec<BlobDigest>), ImageError> {
    let name = format!("config \"{}\"", show(image.config.as_bytes()));
    let section = archive
        .find(&image.config)?
        .ok_or_else(|| ImageError::Missing {
            what: "config",
            name: show(image.config.as_bytes()),
        })?;
    let bytes = read_bounded(section, &name)?;
    if let Some(expected) = digest_in(&image.config) {
        let found = BlobDigest::of(&bytes);
        if found != expected {
            return Err(ImageError::Digest {
                what: "config",
                found,
                expected,
            });
        }
    }
    ImageConfig::read(&bytes, &name)
}

fn layers(
    archive: &Archive,
    image: &Saved,
    diff_ids: Vec<BlobDigest>,
) -> Result<Vec<Layer>, ImageError> {
    let names = image.layers.as_deref().unwrap_or_default();
    check_layer_count(names.len(), diff_ids.len())?;
    let layer = |(name, diff_id): (&String, BlobDigest)| {
        let section = archive.find(name)?.ok_or_else(|| ImageError::Missing {
            what: "layer",
            name: show(name.as_bytes()),
        })?;
        Ok(Layer {
            name: name.clone(),
            digest: digest_in(name),
            diff_id,
            size: section.size,
        })
    };
    names.iter().zip(diff_ids).map(layer).collect()
}

/// The digest that a member is named after: `blobs/sha256/HEX`, `HEX.json`, `HEX.tar`.
fn digest_in(name: &str) -> Option<BlobDigest> {
    if let Some(hex) = name.strip_prefix("blobs/sha256/") {
        return format!("sha256:{hex}").parse().ok();
    }
    let hex = name.strip_suffix(".json").or(name.strip_suffix(".tar"))?;
    format!("sha256:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_means_an_image() {
        for (tag, name) in [
            ("debian:12", "debian:12"),
            ("12", "debian:12"),
            ("debian", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("latest", "localhost:5000/a/b:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
        ] {
            assert!(means(tag, name), "{tag} {name}");
        }
        for (tag, name) in [
            ("debian", "debian:12"),
            ("debian:1", "debian:12"),
            ("5000/a", "localhost:5000/a:latest"),
            ("a", "b/a:latest"),
        ] {
            assert!(!means(tag, name), "{tag} {name}");
        }
    }
}
