//! Backend `copy`: a layer is a whole raw disk, made by sharing extents (reflink) where the file
//! system can, else by copying what is not a hole. Needs nothing of the host and works with every
//! monitor; what it costs is time and space on file systems without reflink.
//!
//! ```text
//!  image.ext4 ──clone──► A.raw (top of sandbox 1) ──clone while it stands still──► B.raw (frozen)
//!                                                                 B.raw ──clone──► C.raw (a fork's top)
//! ```

use std::path::Path;

use async_trait::async_trait;
use cowslip_host::{Content, Site};
use cowslip_ledger::{LayerRecord, Owner};
use cowslip_model::{DiskChain, DiskFormat, DiskLayer, Durability, SandboxId};

use crate::changes::Changes;
use crate::layer::{
    Flat, blocking, check_template, check_whole, make_layer_file, not_smaller, open_layer,
    open_template, sources, sync_layer,
};
use crate::{Backend, FlattenStats, FreezeStyle, LiveDisk, StoreError, Volumes, compare, flatten};

/// The backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    /// What the guests' flushes are worth.
    pub(crate) durability: Durability,
}

/// Makes `layer` as a copy of `source`, a layer of at most its size.
fn clone_layer(site: &Site, layer: &LayerRecord, source: &LayerRecord) -> Result<(), StoreError> {
    not_smaller(layer, source.size)?;
    check_whole(site, source)?;
    let path = site.layout.layer(source.id, source.format);
    make_layer_file(
        site,
        layer,
        Content::CloneOf {
            source: &path,
            size: layer.size.bytes(),
        },
    )
}

#[async_trait]
impl Volumes for Copy {
    fn backend(&self) -> Backend {
        Backend::Copy
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::Raw
    }

    fn freeze_style(&self) -> FreezeStyle {
        FreezeStyle::SetAside
    }

    async fn make_layer(
        &self,
        site: &Site,
        layer: &LayerRecord,
        below: Option<&LayerRecord>,
    ) -> Result<(), StoreError> {
        let (site, layer, parent) = (site.clone(), layer.clone(), below.cloned());
        blocking("make a layer", move || {
            if !layer.size.bytes().is_multiple_of(512) {
                let why = "not a whole number of 512-byte sectors: round it up".to_owned();
                return Err(StoreError::Size {
                    size: layer.size,
                    why,
                });
            }
            if let Some(parent) = &parent {
                return clone_layer(&site, &layer, parent);
            }
            let template = check_template(&site, layer.template)?;
            not_smaller(&layer, template.size)?;
            let path = site.layout.template_image(template.id);
            make_layer_file(
                &site,
                &layer,
                Content::CloneOf {
                    source: &path,
                    size: layer.size.bytes(),
                },
            )
        })
        .await
    }

    /// Only the last layer is opened; those it was copied from may be gone.
    async fn activate(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<DiskChain, StoreError> {
        let (site, top) = (site.clone(), layers.last().cloned());
        let durability = self.durability;
        blocking("activate a volume", move || {
            let top = top.ok_or(StoreError::NoLayers { sandbox: owner })?;
            let path = site.layout.layer(top.id, top.format);
            if top.format != DiskFormat::Raw {
                let why = "is not a raw layer: it was made by another backend".to_owned();
                return Err(StoreError::Layer {
                    layer: top.id,
                    path,
                    why,
                });
            }
            check_whole(&site, &top)?;
            let size = top.size.bytes();
            Ok(DiskChain {
                durability,
                frozen: Vec::new(),
                top: DiskLayer {
                    path,
                    format: top.format,
                },
                size,
            })
        })
        .await
    }

    async fn freeze(
        &self,
        site: &Site,
        top: &LayerRecord,
        other: &LayerRecord,
        _disk: &dyn LiveDisk,
    ) -> Result<(), StoreError> {
        let (site, top, other) = (site.clone(), top.clone(), other.clone());
        blocking("freeze a volume", move || clone_layer(&site, &other, &top)).await
    }

    async fn sync(&self, site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
        sync_layer(site, layer).await
    }

    fn usage(&self, site: &Site, layer: &LayerRecord) -> Result<u64, StoreError> {
        Ok(site.host.usage(&self.path(site, layer))?)
    }

    /// A copy does not tell what was written to it: it is compared with the template, and what differs
    /// is what was changed by it and by all that it was copied from.
    async fn changes(&self, site: &Site, layer: &LayerRecord) -> Result<Changes, StoreError> {
        let (site, layer) = (site.clone(), layer.clone());
        blocking("compare a layer with its template", move || {
            let template = check_template(&site, layer.template)?;
            check_whole(&site, &layer)?;
            let below = open_template(&site, &template)?;
            let whole = open_layer(&site, &layer)?;
            compare::differences(&below, &whole).map_err(|error| StoreError::Layer {
                layer: layer.id,
                path: site.layout.layer(layer.id, layer.format),
                why: format!("cannot be compared with its template: {error}"),
            })
        })
        .await
    }

    /// The last layer is the disk already.
    async fn flatten(
        &self,
        site: &Site,
        layers: &[LayerRecord],
        owner: Owner,
        out: &Path,
    ) -> Result<FlattenStats, StoreError> {
        let (site, top, out) = (site.clone(), layers.last().cloned(), out.to_owned());
        blocking("flatten a volume", move || {
            let top = top.ok_or(StoreError::Nothing { owner })?;
            check_whole(&site, &top)?;
            let whole = open_layer(&site, &top)?;
            let flat = Flat {
                owner,
                out,
                sources: sources(&site, None, std::slice::from_ref(&top)),
                size: top.size,
            };
            flat.make(&site, |file| {
                flatten::write(&whole, top.size.bytes(), &[], &[], file)
            })
        })
        .await
    }
}
