//! Freezing the top of a disk in use.
//!
//! ```text
//!  usual    disk ─► T                    disk ─► N ─► T          N is made while the guest runs
//!
//!  merged   disk ─► T ─► B ─► A          disk ─► N ─► T' ─► M    M = A and B together; M is made while
//!                                                               the guest runs, T' and N while it stands
//! ```
//!
//! T' is a second device over T's store, for reading only. It is opened when nothing writes T any more,
//! since the kernel reads a store once; and the old devices go when nobody else stands on them.

use cowslip_host::dm::DeviceNumber;
use cowslip_host::{Site, Target};
use cowslip_ledger::{HandleRow, LayerRecord, Synchronous};
use cowslip_model::{Durability, HandleId, SandboxId};

use super::devices::{Found, layer_device, release_read_only, root_device, standing, under_disk};
use super::{disk_row, disk_spec, over, sectors};
use crate::StoreError;

/// The device that the disk of a sandbox is put on.
pub(super) fn under(site: &Site, sandbox: SandboxId) -> Result<Option<DeviceNumber>, StoreError> {
    let spec = disk_spec(site, sandbox, Target::Zero, 0);
    let table = site.host.device_table(&spec)?;
    Ok(match table.first().map(|segment| segment.target) {
        Some(Target::Linear { device, .. }) => Some(device),
        _ => None,
    })
}

fn disk_of(site: &Site, sandbox: SandboxId) -> Result<HandleRow, StoreError> {
    disk_row(site, sandbox)?.ok_or(StoreError::NoLayers { sandbox })
}

/// What lies below `top` by the ledger, found standing or made.
fn below(
    site: &Site,
    top: &LayerRecord,
    sandbox: SandboxId,
    durability: Durability,
) -> Result<Found, StoreError> {
    let chain = site.ledger.read(|tx| tx.chain(top.id))?;
    let root = chain.first().ok_or(StoreError::NoLayers { sandbox })?;
    let mut below = root_device(site, root)?;
    for layer in chain.iter().take_while(|layer| layer.id != top.id) {
        below = layer_device(site, layer, &below, durability)?;
    }
    Ok(below)
}

/// Before the switch: whatever becomes of it, what the disk may stand on is not taken down under it.
fn hold(site: &Site, sandbox: SandboxId, handle: HandleId) -> Result<(), StoreError> {
    let row = disk_of(site, sandbox)?;
    site.ledger
        .write("freeze: depend", Synchronous::Normal, |tx| {
            tx.add_dependencies(row.id, &[handle])
        })?;
    Ok(())
}

pub(super) fn prepare(
    site: &Site,
    top: &LayerRecord,
    other: &LayerRecord,
    sandbox: SandboxId,
    durability: Durability,
) -> Result<(), StoreError> {
    let number = under(site, sandbox)?.ok_or(StoreError::NoLayers { sandbox })?;
    let current = under_disk(site, top, number)?;
    let below = below(site, top, sandbox, durability)?;
    let held = if current.stands_on(&below) {
        layer_device(site, other, &current.found(top), durability)?
    } else {
        release_read_only(site, top)?;
        below
    };
    hold(site, sandbox, held.handle)
}

pub(super) fn freeze(
    site: &Site,
    top: &LayerRecord,
    other: &LayerRecord,
    sandbox: SandboxId,
    durability: Durability,
) -> Result<(), StoreError> {
    let new = match standing(site, other)?.first() {
        Some(standing) => standing.found(other),
        None => {
            let frozen = LayerRecord {
                frozen: true,
                ..top.clone()
            };
            let below = below(site, top, sandbox, durability)?;
            let moved = layer_device(site, &frozen, &below, durability)?;
            let new = layer_device(site, other, &moved, durability)?;
            hold(site, sandbox, new.handle)?;
            new
        }
    };
    let spec = disk_spec(site, sandbox, over(new.number), sectors(other));
    let table = spec.table.clone();
    site.host.switch_device(&spec, &table)?;
    // The switch is done, whatever the ledger says: with more in it than the disk stands on, devices
    // stay that nobody needs, until the machine ends.
    let row = disk_of(site, sandbox)?;
    let written = site
        .ledger
        .write("freeze: stand", Synchronous::Normal, |tx| {
            tx.set_dependencies(row.id, &[new.handle])
        });
    if let Err(error) = written {
        tracing::warn!(%sandbox, %error, "devices below its disk stay until its machine ends");
    }
    Ok(())
}
