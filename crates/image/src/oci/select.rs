//! Which image is meant: by its tag, and by its platform, through indexes of indexes.

use std::collections::BTreeSet;

use super::documents::{Descriptor, MediaType, read_blob, read_index, read_manifest};
use super::{Blobs, ImageConfig, ImageError, Platform};
use crate::error::show;

/// Indexes are no deeper inside one another.
const MAX_NESTING: usize = 4;
/// No more documents are read to find one image.
const MAX_DOCUMENTS: usize = 64;
/// An error names no more tags or platforms than these.
const MAX_NAMED: usize = 20;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The entries of a layout's index that a tag means; without a tag, all, if they have no more than
/// one tag among them.
pub(super) fn tagged(
    entries: Vec<Descriptor>,
    tag: Option<&str>,
) -> Result<Vec<Descriptor>, ImageError> {
    let tags: BTreeSet<String> = entries
        .iter()
        .filter_map(|entry| {
            entry
                .annotation(REF_NAME)
                .or(entry.annotation(CONTAINERD_NAME))
        })
        .map(|tag| show(tag.as_bytes()))
        .collect();
    let Some(tag) = tag else {
        return match tags.len() {
            0 | 1 => Ok(entries),
            _ => Err(ImageError::Ambiguous {
                available: list(&tags),
            }),
        };
    };
    let has = |entry: &Descriptor, key| entry.annotation(key) == Some(tag);
    let found: Vec<_> = entries
        .into_iter()
        .filter(|entry| has(entry, REF_NAME) || has(entry, CONTAINERD_NAME))
        .collect();
    match found.is_empty() {
        false => Ok(found),
        true => Err(ImageError::NoSuchTag {
            tag: show(tag.as_bytes()),
            available: list(&tags),
        }),
    }
}

/// What the candidates have, while they are looked through.
#[derive(Default)]
struct Found {
    exact: Option<Descriptor>,
    /// Of the same architecture without its variant, which every variant runs.
    baseline: Option<Descriptor>,
    /// Entries that do not say what they are for.
    silent: Vec<Descriptor>,
    others: BTreeSet<String>,
    documents: usize,
}

/// The manifest for a platform. Entries that do not say what they are for are looked into, when no
/// other is for it.
pub(super) fn find(
    blobs: &dyn Blobs,
    candidates: Vec<Descriptor>,
    platform: &Platform,
) -> Result<Descriptor, ImageError> {
    let mut found = Found::default();
    look_through(blobs, candidates, platform, &mut found, 0)?;
    if let Some(exact) = found.exact.take().or(found.baseline.take()) {
        return Ok(exact);
    }
    if let [_] = found.silent[..]
        && found.others.is_empty()
    {
        // The only one: its config says what it is for, and is checked for that.
        return Ok(found.silent.swap_remove(0));
    }
    for manifest in std::mem::take(&mut found.silent) {
        found.count_document()?;
        let config = read_manifest(blobs, &manifest)?.config;
        if config.kind() != MediaType::Config {
            continue;
        }
        let bytes = read_blob(blobs, &config, "config")?;
        let (config, _) = ImageConfig::read(&bytes, &format!("config {}", config.digest))?;
        if serves(&config.platform, platform) {
            return Ok(manifest);
        }
        found.others.insert(config.platform.show());
    }
    Err(ImageError::Platform {
        wanted: platform.show(),
        available: list(&found.others),
    })
}

impl Found {
    fn count_document(&mut self) -> Result<(), ImageError> {
        self.documents += 1;
        match self.documents > MAX_DOCUMENTS {
            true => Err(ImageError::TooMany {
                limit: MAX_DOCUMENTS as u64,
                what: "indexes and manifests to look through",
            }),
            false => Ok(()),
        }
    }
}

fn look_through(
    blobs: &dyn Blobs,
    entries: Vec<Descriptor>,
    platform: &Platform,
    found: &mut Found,
    depth: usize,
) -> Result<(), ImageError> {
    if depth > MAX_NESTING {
        return Err(ImageError::TooMany {
            limit: MAX_NESTING as u64,
            what: "indexes inside one another",
        });
    }
    for entry in entries.into_iter().filter(|entry| !entry.is_attestation()) {
        let other = |given: &&Platform| !serves(given, platform);
        match (entry.kind(), &entry.platform) {
            (MediaType::Index, given) => {
                if let Some(other) = given.as_ref().filter(other) {
                    found.others.insert(other.show());
                    continue;
                }
                found.count_document()?;
                let inner = read_index(blobs, &entry)?.manifests;
                look_through(blobs, inner, platform, found, depth + 1)?;
            }
            (MediaType::Manifest, None) => found.silent.push(entry),
            (MediaType::Manifest, Some(given)) if given == platform => {
                found.exact.get_or_insert(entry);
            }
            (MediaType::Manifest, Some(given)) if serves(given, platform) => {
                found.baseline.get_or_insert(entry);
            }
            (MediaType::Manifest, Some(given)) => {
                found.others.insert(given.show());
            }
            // Asked for by name, it has to be something that is known.
            _ if depth == 0 && entry.platform.is_none() && entry.annotations.is_none() => {
                return Err(entry.unsupported("manifest", ""));
            }
            // An index may have entries of kinds that are yet to come.
            _ => {}
        }
    }
    Ok(())
}

/// Whether an image for one platform runs on another.
fn serves(image: &Platform, wanted: &Platform) -> bool {
    let baseline = Platform::new(image.os(), image.architecture(), None);
    let runs_baseline = matches!(image.architecture(), "amd64" | "arm64");
    image == wanted
        || (*image == baseline
            && runs_baseline
            && Platform::new(wanted.os(), wanted.architecture(), None) == baseline)
}

/// Whether an image is what was asked for, by its own word.
pub(super) fn check_platform(image: &Platform, wanted: &Platform) -> Result<(), ImageError> {
    // A variant is the index's to tell: few configs do.
    let same = image.os() == wanted.os() && image.architecture() == wanted.architecture();
    match same {
        true => Ok(()),
        false => Err(ImageError::Platform {
            wanted: wanted.show(),
            available: image.show(),
        }),
    }
}

/// Names in words.
pub(super) fn list(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let named: Vec<String> = names
        .iter()
        .take(MAX_NAMED)
        .map(|n| format!("\"{n}\""))
        .collect();
    match names.len().saturating_sub(MAX_NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}
