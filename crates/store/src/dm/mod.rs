//! Backend `dm`: a layer is a persistent exception store of device-mapper's snapshot target.
//!
//! ```text
//!  image.ext4 ──loop (ro, shared)──┬── dm-snapshot "layer A" ◄── dm-snapshot "layer B" ◄── "disk 1"
//!  A.cow ──loop────────────────────┘     (frozen, shared)   ▲      (top, written)      dm-linear
//!  B.cow ──loop─────────────────────────────────────────────┘
//! ```
//!
//! What a monitor opens is always the *disk*, one linear segment over the top layer: a freeze makes a
//! new layer over the top and switches the disk's table, which is one ioctl. The monitor keeps its
//! device and its open file and notices nothing.
//!
//! A layer has one device, whoever uses it: it is made when the first machine needs it and taken down
//! ([`Volumes::retire`]) when nothing stands on it any more. Only a layer under a running machine whose
//! lower layers were merged has a second for a time (`freeze.rs`). What stands on what is in the ledger, as
//! dependencies of handles. All of that happens under one lock of this engine: the steps are short
//! system calls, and a layer that is being taken down must not be found by somebody who begins to use it.

mod devices;
mod freeze;
mod merge;
mod retire;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use cowslip_host::dm::{self, Role, SECTOR, whole};
use cowslip_host::{Content, Device, DeviceSpec, Site, Target};
use cowslip_ledger::{HandleRow, LayerRecord, Owner, Resource};
use cowslip_model::{DiskChain, DiskFormat, DiskLayer, Durability, SandboxId};

use crate::changes::Changes;
use crate::exceptions::{CHUNK_SECTORS, blank_store, store_size};
use crate::layer::{
    Flat, blocking, check_template, make_layer_file, not_smaller, open_layer, open_template,
    sources, sync_layer,
};
use crate::{Backend, FlattenStats, FreezeStyle, LiveDisk, StoreError, Volumes, flatten};
use devices::{Found, check_store, layer_device, root_device};

/// The backend.
#[derive(Debug, Clone)]
pub(crate) struct Dm {
    durability: Durability,
    one_at_a_time: Arc<Mutex<()>>,
}

impl Dm {
    pub(crate) fn new(durability: Durability) -> Self {
        Self {
            durability,
            one_at_a_time: Arc::default(),
        }
    }
}

fn guard(lock: &Mutex<()>) -> MutexGuard<'_, ()> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a sandbox's disk; its table is what changes.
fn disk_spec(site: &Site, sandbox: SandboxId, target: Target, sectors: u64) -> DeviceSpec {
    let table = whole(sectors, target);
    DeviceSpec::new(site.ledger.instance(), Role::Disk, sandbox, table)
}

fn over(device: dm::DeviceNumber) -> Target {
    Target::Linear { device, from: 0 }
}

/// The row of a sandbox's disk, if it has one.
fn disk_row(site: &Site, sandbox: SandboxId) -> Result<Option<HandleRow>, StoreError> {
    let rows = site
        .ledger
        .read(|tx| tx.handles_of(Owner::Machine(sandbox)))?;
    Ok(rows.into_iter().find(|row| row.kind == Device::KIND))
}

fn sectors(layer: &LayerRecord) -> u64 {
    layer.size.bytes() / SECTOR
}

/// The devices of a chain, base first; gives the top's.
fn chain_device(
    site: &Site,
    owner: SandboxId,
    layers: &[LayerRecord],
    durability: Durability,
) -> Result<Found, StoreError> {
    let root = layers
        .first()
        .ok_or(StoreError::NoLayers { sandbox: owner })?;
    let mut below = root_device(site, root)?;
    for layer in layers {
        below = layer_device(site, layer, &below, durability)?;
    }
    Ok(below)
}

/// The disk of a sandbox over its top layer; one that is there already stays as it is.
fn activate(
    site: &Site,
    owner: SandboxId,
    layers: &[LayerRecord],
    durability: Durability,
) -> Result<DiskChain, StoreError> {
    let top = layers
        .last()
        .ok_or(StoreError::NoLayers { sandbox: owner })?;
    let found = disk_row(site, owner)?;
    let number = match found
        .as_ref()
        .map(HandleRow::identity::<Device>)
        .transpose()?
    {
        // The machine of an earlier engine has it open: what it stands on is as it left it.
        Some(Some(identity)) => identity.number,
        _ => {
            let below = chain_device(site, owner, layers, durability)?;
            let spec = disk_spec(site, owner, over(below.number), sectors(top));
            let slot =
                site.ledger
                    .reserve::<Device>(Owner::Machine(owner), spec, &[below.handle])?;
            let held = site.host.make_device(slot)?;
            let number = held.identity().number;
            held.settle();
            number
        }
    };
    Ok(DiskChain {
        durability,
        frozen: Vec::new(),
        top: DiskLayer {
            path: dm::node(number),
            format: DiskFormat::Raw,
        },
        size: top.size.bytes(),
    })
}

#[async_trait]
impl Volumes for Dm {
    fn backend(&self) -> Backend {
        Backend::Dm
    }

    fn format(&self) -> DiskFormat {
        DiskFormat::Snapshot
    }

    fn freeze_style(&self, _top: DiskFormat) -> FreezeStyle {
        FreezeStyle::NewTop
    }

    async fn make_layer(
        &self,
        site: &Site,
        layer: &LayerRecord,
        below: Option<&LayerRecord>,
    ) -> Result<(), StoreError> {
        let (site, layer, below) = (site.clone(), layer.clone(), below.cloned());
        blocking("make a layer", move || {
            let size = store_size(layer.size.bytes(), CHUNK_SECTORS)?;
            match &below {
                Some(below) => not_smaller(&layer, below.size)?,
                None => not_smaller(&layer, check_template(&site, layer.template)?.size)?,
            }
            let bytes = blank_store(CHUNK_SECTORS)?;
            let content = Content::Beginning {
                bytes: &bytes,
                size,
            };
            make_layer_file(&site, &layer, content)
        })
        .await
    }

    async fn activate(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<DiskChain, StoreError> {
        let (site, layers, lock) = (
            site.clone(),
            layers.to_vec(),
            Arc::clone(&self.one_at_a_time),
        );
        let durability = self.durability;
        blocking("activate a volume", move || {
            if let Some(root) = layers.first() {
                // A look at a changed file reads all of it: nobody else waits for that.
                check_template(&site, root.template)?;
            }
            let _one_at_a_time = guard(&lock);
            activate(&site, owner, &layers, durability)
        })
        .await
    }

    async fn check(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<(), StoreError> {
        let (site, layers) = (site.clone(), layers.to_vec());
        blocking("check a volume", move || {
            let root = layers
                .first()
                .ok_or(StoreError::NoLayers { sandbox: owner })?;
            check_template(&site, root.template)?;
            layers
                .iter()
                .try_for_each(|layer| check_store(&site, layer).map(drop))
        })
        .await
    }

    async fn retire(&self, site: &Site) -> Result<(), StoreError> {
        let (site, lock) = (site.clone(), Arc::clone(&self.one_at_a_time));
        blocking("take devices down", move || {
            let _one_at_a_time = guard(&lock);
            retire::retire(&site)
        })
        .await
    }

    /// Makes the device of the new layer: it reads through the top, which the guest may go on writing.
    /// Where what lies below the top was merged since its device was made, only what it is to stand on is
    /// made: see `freeze`.
    async fn prepare_freeze(
        &self,
        site: &Site,
        top: &LayerRecord,
        other: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<(), StoreError> {
        let (site, lock) = (site.clone(), Arc::clone(&self.one_at_a_time));
        let (top, other, sandbox) = (top.clone(), other.clone(), disk.sandbox());
        let durability = self.durability;
        blocking("prepare a freeze", move || {
            {
                let _one_at_a_time = guard(&lock);
                freeze::prepare(&site, &top, &other, sandbox, durability)?;
            }
            // The switch writes whatever came after that, under the old table.
            freeze::write_out(&site, sandbox)
        })
        .await
    }

    /// Switches the disk. A top that shall stand on what the layers below it were merged into gets a
    /// second device there first, now that nothing writes it.
    async fn freeze(
        &self,
        site: &Site,
        top: &LayerRecord,
        other: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<(), StoreError> {
        let (site, lock) = (site.clone(), Arc::clone(&self.one_at_a_time));
        let (top, other, sandbox) = (top.clone(), other.clone(), disk.sandbox());
        let durability = self.durability;
        blocking("freeze a volume", move || {
            if freeze::usual(&site, &other, sandbox)? {
                return Ok(());
            }
            let _one_at_a_time = guard(&lock);
            freeze::moved(&site, &top, &other, sandbox, durability)
        })
        .await
    }

    async fn write_out(&self, site: &Site, sandbox: SandboxId) -> Result<(), StoreError> {
        let site = site.clone();
        blocking("write out a disk", move || {
            freeze::write_out(&site, sandbox)
        })
        .await
    }

    async fn settle(&self, site: &Site, sandbox: SandboxId) -> Result<(), StoreError> {
        let (site, lock) = (site.clone(), Arc::clone(&self.one_at_a_time));
        blocking("settle a disk", move || {
            let _one_at_a_time = guard(&lock);
            freeze::settle(&site, sandbox)
        })
        .await
    }

    async fn is_written(
        &self,
        site: &Site,
        layer: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<bool, StoreError> {
        let (site, layer, sandbox) = (site.clone(), layer.clone(), disk.sandbox());
        blocking("look at a disk", move || {
            let number = freeze::under(&site, sandbox)?;
            let standing = devices::standing(&site, &layer)?;
            Ok(standing.iter().any(|one| Some(one.number) == number))
        })
        .await
    }

    async fn sync(&self, site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
        sync_layer(site, layer).await?;
        let (site, layer) = (site.clone(), layer.clone());
        blocking("look at a layer", move || {
            devices::require_valid(&site, &layer)
        })
        .await
    }

    fn usage(&self, site: &Site, layer: &LayerRecord) -> Result<u64, StoreError> {
        Ok(site.host.usage(&self.path(site, layer))?)
    }

    fn merges(&self) -> bool {
        true
    }

    async fn merge(
        &self,
        site: &Site,
        layers: &[LayerRecord],
        into: &LayerRecord,
    ) -> Result<(), StoreError> {
        let (site, layers, into) = (site.clone(), layers.to_vec(), into.clone());
        blocking("merge layers", move || merge::merge(&site, &layers, &into)).await
    }

    /// What the pairs of a store that a machine writes say at the moment: the kernel commits them with
    /// every group of writes.
    async fn changes(&self, site: &Site, layer: &LayerRecord) -> Result<Changes, StoreError> {
        let (site, layer) = (site.clone(), layer.clone());
        blocking("read the changes of a layer", move || {
            check_store(&site, &layer).map(|found| found.changes())
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
            let mut files = Vec::with_capacity(layers.len());
            let mut changes = Vec::with_capacity(layers.len());
            for layer in &layers {
                changes.push(check_store(&site, layer)?.changes());
                files.push(open_layer(&site, layer)?);
            }
            let files: Vec<&std::fs::File> = files.iter().collect();
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

/// A layer's damage in the words of an error.
fn damaged(site: &Site, layer: &LayerRecord, why: String) -> StoreError {
    StoreError::Layer {
        layer: layer.id,
        path: site.layout.layer(layer.id, layer.format),
        why,
    }
}
