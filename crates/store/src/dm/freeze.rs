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
//! since the kernel reads a store once; and the old devices go when nobody else stands on them. Until
//! it is known which of the two the disk stands on, its row holds both: [`settle`] ends that.

use cowslip_host::dm::{self, DeviceNumber};
use cowslip_host::{Device, Site, Target};
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{HandleRow, LayerRecord, Resource, Synchronous};
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

/// Switches the disk where the new layer's device was made before; the guest waits for that, so it is
/// nothing but the look at that device and the switch. What is made is held by the disk's row, so nobody
/// takes it down meanwhile.
pub(super) fn usual(
    site: &Site,
    other: &LayerRecord,
    sandbox: SandboxId,
) -> Result<bool, StoreError> {
    match standing(site, other)?.first() {
        Some(new) => switch(site, other, sandbox, new.number).map(|()| true),
        None => Ok(false),
    }
}

/// Makes the devices over the merged layer, and switches the disk.
pub(super) fn moved(
    site: &Site,
    top: &LayerRecord,
    other: &LayerRecord,
    sandbox: SandboxId,
    durability: Durability,
) -> Result<(), StoreError> {
    let frozen = LayerRecord {
        frozen: true,
        ..top.clone()
    };
    let below = below(site, top, sandbox, durability)?;
    let moved = layer_device(site, &frozen, &below, durability)?;
    let new = layer_device(site, other, &moved, durability)?;
    hold(site, sandbox, new.handle)?;
    switch(site, other, sandbox, new.number)
}

fn switch(
    site: &Site,
    other: &LayerRecord,
    sandbox: SandboxId,
    to: DeviceNumber,
) -> Result<(), StoreError> {
    let spec = disk_spec(site, sandbox, over(to), sectors(other));
    let table = spec.table.clone();
    Ok(site.host.switch_device(&spec, &table)?)
}

/// Presses the disk's own cache onto what it stands on.
pub(super) fn write_out(site: &Site, sandbox: SandboxId) -> Result<(), StoreError> {
    let row = disk_row(site, sandbox)?;
    let identity = row
        .as_ref()
        .map(HandleRow::identity::<Device>)
        .transpose()?;
    match identity.flatten() {
        Some(identity) => Ok(site.host.sync(&dm::node(identity.number))?),
        None => Ok(()),
    }
}

/// The disk's row depends on what the disk stands on, and on nothing else.
pub(super) fn settle(site: &Site, sandbox: SandboxId) -> Result<(), StoreError> {
    let Some(row) = disk_row(site, sandbox)? else {
        return Ok(());
    };
    // A disk that is not there any more goes as a whole.
    let Some(number) = under(site, sandbox)? else {
        return Ok(());
    };
    let devices = site.ledger.read(|tx| tx.handles_of_kind(Device::KIND))?;
    for device in devices {
        let identity = device.identity::<Device>()?;
        // A row may tell of a device that is gone, and its number be another's by now.
        if identity.is_none_or(|identity| identity.number != number)
            || site.host.probe(&device)? != Presence::Present
        {
            continue;
        }
        if row.depends_on != [device.id] {
            site.ledger
                .write("settle: stand", Synchronous::Normal, |tx| {
                    tx.set_dependencies(row.id, &[device.id])
                })?;
        }
        break;
    }
    Ok(())
}
