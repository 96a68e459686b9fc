//! Backend `qcow2`: a layer is an overlay over the one below, made empty by ourselves and filled by
//! the monitor. Needs nothing of the host.
//!
//! ```text
//!  templates/<id>/image.ext4 ◄── A.qcow2 (frozen) ◄─┬─ B.qcow2 (top of sandbox 1)
//!        raw, read-only                             └─ C.qcow2 (top of sandbox 2)
//! ```
//!
//! An overlay names its backing file relative to its own directory, so a state directory can be
//! moved. Freezing is O(1): the monitor goes on in an empty overlay.

mod format;
#[cfg(test)]
mod header_tests;
mod map;
mod read;
mod write;

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cowslip_host::{Content, Site};
use cowslip_ledger::{LayerRecord, Owner, TemplateRecord};
use cowslip_model::{DiskChain, DiskFormat, DiskLayer, Durability, SandboxId};

pub use read::{HEAD_LIMIT, HeaderError, Overlay, read_header};

use crate::changes::Changes;
use crate::layer::{
    Flat, blocking, check_template, make_layer_file, not_smaller, open_layer, open_template,
    sources, sync_layer,
};
use crate::{Backend, FlattenStats, FreezeStyle, LiveDisk, StoreError, Volumes, flatten};

/// The backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Qcow2 {
    /// What the guests' flushes are worth.
    pub(crate) durability: Durability,
}

/// What an overlay must say of the file below it.
struct Below {
    path: PathBuf,
    format: DiskFormat,
}

impl Below {
    fn template(site: &Site, template: &TemplateRecord) -> Self {
        Self {
            path: site.layout.template_image(template.id),
            format: DiskFormat::Raw,
        }
    }

    fn layer(site: &Site, layer: &LayerRecord) -> Self {
        Self {
            path: site.layout.layer(layer.id, layer.format),
            format: layer.format,
        }
    }

    /// Its name as written into `overlay`.
    fn name(&self, overlay: &Path) -> PathBuf {
        overlay
            .parent()
            .map_or_else(|| self.path.clone(), |dir| relative(dir, &self.path))
    }
}

impl From<Below> for DiskLayer {
    fn from(below: Below) -> Self {
        Self {
            path: below.path,
            format: below.format,
        }
    }
}

/// `to` as seen from the directory `from`; both absolute and free of `..`.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from
        .components()
        .skip(common)
        .map(|_| std::path::Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

/// Checks that the layer's file is an overlay of the right size over `below`.
fn verify(site: &Site, layer: &LayerRecord, below: &Below) -> Result<Overlay, StoreError> {
    let path = site.layout.layer(layer.id, layer.format);
    let damaged = |why: String| StoreError::Layer {
        layer: layer.id,
        path: path.clone(),
        why,
    };
    if layer.format != DiskFormat::Qcow2 {
        return Err(damaged(
            "is not a qcow2 layer: it was made by another backend".to_owned(),
        ));
    }
    let head = site
        .host
        .head(&path, HEAD_LIMIT)?
        .ok_or_else(|| damaged("is gone".to_owned()))?;
    let found =
        read_header(&head.bytes, head.length).map_err(|error| damaged(error.to_string()))?;
    if found.size != layer.size.bytes() {
        return Err(damaged(format!(
            "holds a disk of {} bytes, the ledger says {}",
            found.size,
            layer.size.bytes()
        )));
    }
    let name = below.name(&path);
    if found.backing != name.as_os_str().as_bytes() {
        return Err(damaged(format!(
            "stands over \"{}\", the ledger says \"{}\"",
            found.backing.escape_ascii(),
            name.display()
        )));
    }
    let format = write::format_name(below.format);
    if found.backing_format != format.as_bytes() {
        return Err(damaged(format!(
            "reads the layer below as \"{}\", it is {format}",
            found.backing_format.escape_ascii()
        )));
    }
    Ok(found)
}

/// What a checked layer changed, and its file.
fn changes_of(
    site: &Site,
    layer: &LayerRecord,
    overlay: &Overlay,
) -> Result<(File, Changes), StoreError> {
    let file = open_layer(site, layer)?;
    let changes = map::changes(&file, overlay).map_err(|error| StoreError::Layer {
        layer: layer.id,
        path: site.layout.layer(layer.id, layer.format),
        why: error.to_string(),
    })?;
    Ok((file, changes))
}

/// What lies right below a layer of the ledger.
fn below_of(site: &Site, layer: &LayerRecord) -> Result<Below, StoreError> {
    let parent = site.ledger.read(|tx| match layer.parent {
        Some(id) => tx.layer(id),
        None => Ok(None),
    })?;
    Ok(match parent {
        Some(parent) => Below::layer(site, &parent),
        None => Below::template(site, &check_template(site, layer.template)?),
    })
}

/// The layer right below `layer`, checked: a frozen parent, or the template.
fn check_below(
    site: &Site,
    layer: &LayerRecord,
    parent: Option<&LayerRecord>,
) -> Result<Below, StoreError> {
    let Some(parent) = parent else {
        let template = check_template(site, layer.template)?;
        not_smaller(layer, template.size)?;
        return Ok(Below::template(site, &template));
    };
    not_smaller(layer, parent.size)?;
    verify(site, parent, &below_of(site, parent)?)?;
    Ok(Below::layer(site, parent))
}

#[async_trait]
impl Volumes for Qcow2 {
    fn backend(&self) -> Backend {
        Backend::Qcow2
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::Qcow2
    }

    fn freeze_style(&self) -> FreezeStyle {
        FreezeStyle::NewTop
    }

    async fn make_layer(
        &self,
        site: &Site,
        layer: &LayerRecord,
        below: Option<&LayerRecord>,
    ) -> Result<(), StoreError> {
        let (site, layer, parent) = (site.clone(), layer.clone(), below.cloned());
        blocking("make a layer", move || {
            let below = check_below(&site, &layer, parent.as_ref())?;
            let path = site.layout.layer(layer.id, layer.format);
            let name = below.name(&path);
            let bytes = write::empty_overlay(
                layer.size.bytes(),
                name.as_os_str().as_bytes(),
                below.format,
            )
            .map_err(|error| StoreError::Size {
                size: layer.size,
                why: error.to_string(),
            })?;
            make_layer_file(&site, &layer, Content::Bytes(&bytes))
        })
        .await
    }

    async fn activate(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<DiskChain, StoreError> {
        let (site, layers) = (site.clone(), layers.to_vec());
        let durability = self.durability;
        blocking("activate a volume", move || {
            let Some(top) = layers.last() else {
                return Err(StoreError::NoLayers { sandbox: owner });
            };
            let template = check_template(&site, top.template)?;
            let mut below = Below::template(&site, &template);
            let mut frozen = Vec::with_capacity(layers.len());
            for layer in &layers {
                verify(&site, layer, &below)?;
                let next = Below::layer(&site, layer);
                frozen.push(std::mem::replace(&mut below, next).into());
            }
            Ok(DiskChain {
                durability,
                frozen,
                top: below.into(),
                size: top.size.bytes(),
            })
        })
        .await
    }

    async fn freeze(
        &self,
        site: &Site,
        _top: &LayerRecord,
        other: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<(), StoreError> {
        let next = DiskLayer {
            path: self.path(site, other),
            format: DiskFormat::Qcow2,
        };
        let Err(error) = disk.change_disk(&next).await else {
            return Ok(());
        };
        // The change may have been made and only its answer lost: what counts is what the machine
        // writes to. Where it does not tell, the first error stands.
        match disk.disk_top().await {
            Ok(path) if path == next.path => Ok(()),
            _ => Err(error),
        }
    }

    async fn sync(&self, site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
        sync_layer(site, layer).await
    }

    fn usage(&self, site: &Site, layer: &LayerRecord) -> Result<u64, StoreError> {
        Ok(site.host.usage(&self.path(site, layer))?)
    }

    async fn changes(&self, site: &Site, layer: &LayerRecord) -> Result<Changes, StoreError> {
        let (site, layer) = (site.clone(), layer.clone());
        blocking("read the changes of a layer", move || {
            let overlay = verify(&site, &layer, &below_of(&site, &layer)?)?;
            changes_of(&site, &layer, &overlay).map(|(_, changes)| changes)
        })
        .await
    }

    async fn flatten(
        &self,
        site: &Site,
        layers: &[LayerRecord],
        owner: Owner,
        out: &Path,
    ) -> Result<FlattenStats, StoreError> {
        let (site, layers, out) = (site.clone(), layers.to_vec(), out.to_owned());
        blocking("flatten a volume", move || {
            let (Some(base), Some(top)) = (layers.first(), layers.last()) else {
                return Err(StoreError::Nothing { owner });
            };
            let template = check_template(&site, base.template)?;
            let image = open_template(&site, &template)?;
            let mut below = Below::template(&site, &template);
            let mut files = Vec::with_capacity(layers.len());
            let mut changes = Vec::with_capacity(layers.len());
            for layer in &layers {
                let overlay = verify(&site, layer, &below)?;
                let (file, changed) = changes_of(&site, layer, &overlay)?;
                files.push(file);
                changes.push(changed);
                below = Below::layer(&site, layer);
            }
            let files: Vec<&File> = files.iter().collect();
            let flat = Flat {
                owner,
                out,
                sources: sources(&site, Some(&template), &layers),
                size: top.size,
            };
            flat.make(&site, |file| {
                flatten::write(&image, top.size.bytes(), &files, &changes, file)
            })
        })
        .await
    }
}
