//! Building the ledger again from the other witnesses when the database is lost or damaged (R43):
//! the mirror files of sandboxes, and the `record.json` in the directories of templates, kernels and
//! checkpoints. What was published is there again, machines that run are adopted as after any other
//! restart, and what was being made is released.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cowslip_host::{Layout, Site, adopt};
use cowslip_ledger::{
    CheckpointRecord, HandleRow, KernelRecord, LayerRecord, Owner, SandboxRecord, Synchronous,
    TemplateRecord,
};
use cowslip_model::LayerId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// The record of a template, kernel or checkpoint, in its directory; written last.
pub(crate) const RECORD: &str = "record.json";

/// A checkpoint's `record.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckpointFile {
    pub(crate) record: CheckpointRecord,
    /// Its chain, base first.
    pub(crate) layers: Vec<LayerRecord>,
}

pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, EngineError> {
    serde_json::to_vec_pretty(record)
        .map_err(|error| EngineError::Internal(format!("encode a record: {error}")))
}

/// What the witnesses know.
#[derive(Default)]
struct Found {
    templates: Vec<TemplateRecord>,
    kernels: Vec<KernelRecord>,
    checkpoints: Vec<CheckpointRecord>,
    sandboxes: Vec<SandboxRecord>,
    layers: BTreeMap<LayerId, LayerRecord>,
    handles: Vec<HandleRow>,
}

/// Records in an empty ledger what the files in the state directory say. Returns what was found, in
/// words; nothing where the state directory is new.
///
/// # Errors
/// When the files contradict each other so that no ledger can hold them.
pub(crate) fn rebuild(site: &Site) -> Result<Vec<String>, EngineError> {
    let found = read_witnesses(site)?;
    let mut words = Vec::new();
    site.ledger
        .write("rebuild: records", Synchronous::Full, |tx| {
            for template in &found.templates {
                words.push(format!("template {}", template.id));
                tx.put_template(template)?;
            }
            for kernel in &found.kernels {
                words.push(format!("kernel \"{}\"", kernel.name));
                tx.put_kernel(kernel)?;
            }
            for layer in in_order(&found.layers) {
                tx.put_layer(layer)?;
            }
            for checkpoint in &found.checkpoints {
                words.push(format!("checkpoint \"{}\"", checkpoint.name));
                tx.put_checkpoint(checkpoint)?;
            }
            for sandbox in &found.sandboxes {
                words.push(format!("sandbox \"{}\"", sandbox.name));
                tx.put_sandbox(sandbox)?;
            }
            for row in &found.handles {
                tx.adopt_handle(row)?;
            }
            Ok::<_, EngineError>(())
        })?;
    adopt_files(site, &found)?;
    Ok(words)
}

/// Directories and files that no mirror lists as handles.
fn adopt_files(site: &Site, found: &Found) -> Result<(), EngineError> {
    for template in &found.templates {
        adopt::directory(
            site,
            Owner::Template(template.id),
            site.layout.template(template.id),
        )?;
    }
    for kernel in &found.kernels {
        adopt::directory(
            site,
            Owner::Kernel(kernel.id),
            site.layout.kernel(kernel.id),
        )?;
    }
    for checkpoint in &found.checkpoints {
        let path = site.layout.checkpoint(checkpoint.id);
        adopt::directory(site, Owner::Checkpoint(checkpoint.id), path)?;
    }
    for layer in found.layers.values() {
        let owner = Owner::Layer(layer.id);
        let path = site.layout.layer(layer.id, layer.format);
        if path.exists() && site.ledger.read(|tx| tx.handles_of(owner))?.is_empty() {
            adopt::file(site, owner, path)?;
        }
    }
    Ok(())
}

fn read_witnesses(site: &Site) -> Result<Found, EngineError> {
    let mut found = Found::default();
    let layout = &site.layout;
    found.templates = read_records(&site.layout, "templates")?;
    found.kernels = read_records(layout, "kernels")?;
    let kernels: Vec<_> = found.kernels.iter().map(|kernel| kernel.id).collect();
    let templates: Vec<_> = found.templates.iter().map(|template| template.id).collect();
    for file in read_records::<CheckpointFile>(layout, "checkpoints")? {
        if kernels.contains(&file.record.spec.kernel)
            && templates.contains(&file.record.spec.template)
        {
            found.checkpoints.push(file.record);
            found
                .layers
                .extend(file.layers.into_iter().map(|layer| (layer.id, layer)));
        }
    }
    let (mirrors, unreadable) = site.ledger.mirror().read_all()?;
    for path in unreadable {
        tracing::warn!(path = %path.display(), "a mirror file cannot be read");
    }
    for (_, mirror) in mirrors {
        found.handles.extend(mirror.handles);
        let Some(sandbox) = mirror.sandbox else {
            continue;
        };
        if kernels.contains(&sandbox.spec.kernel) && templates.contains(&sandbox.spec.template) {
            // A mirror may be older than a machine's last save.
            found.sandboxes.push(SandboxRecord {
                memory_base: None,
                ..sandbox
            });
            // A sandbox's own view of a layer is newer than a checkpoint's.
            found
                .layers
                .extend(mirror.layers.into_iter().map(|layer| (layer.id, layer)));
        }
    }
    found.handles.sort_by_key(|row| row.seq);
    found.handles.dedup_by_key(|row| row.id);
    Ok(found)
}

/// Every readable record of one kind; a directory without one was never published.
fn read_records<T: DeserializeOwned>(layout: &Layout, kind: &str) -> Result<Vec<T>, EngineError> {
    let directory = layout.state().join(kind);
    let list = |path: &Path| -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.path().join(RECORD)))
            .collect()
    };
    let mut paths = list(&directory)
        .map_err(cowslip_host::HostError::path("list", &directory))
        .map_err(EngineError::from)?;
    paths.sort();
    Ok(paths
        .iter()
        .filter_map(|path| std::fs::read(path).ok())
        .filter_map(|text| serde_json::from_slice(&text).ok())
        .collect())
}

/// Parents before children.
fn in_order(layers: &BTreeMap<LayerId, LayerRecord>) -> Vec<&LayerRecord> {
    let depth = |layer: &LayerRecord| {
        let mut depth = 0_usize;
        let mut next = layer.parent;
        // A cycle cannot be: the bound ends it all the same.
        while let Some(parent) = next.and_then(|id| layers.get(&id)) {
            depth += 1;
            next = parent.parent.filter(|_| depth <= layers.len());
        }
        depth
    };
    let mut ordered: Vec<&LayerRecord> = layers.values().collect();
    ordered.sort_by_key(|layer| depth(layer));
    ordered
}

/// Whether the ledger holds nothing at all: then the witnesses are asked.
pub(crate) fn is_empty(site: &Site) -> Result<bool, EngineError> {
    site.ledger.read(|tx| {
        Ok(tx.templates()?.is_empty() && tx.kernels()?.is_empty() && tx.handles()?.is_empty())
    })
}
