//! Devices of layers: found standing, or made.

use cowslip_host::dm::{Role, SECTOR, whole};
use cowslip_host::{
    Device, DeviceNumber, DeviceSpec, Loop, LoopHold, LoopSpec, Segment, Site, Target,
};
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{HandleRow, LayerRecord, Owner, Resource};
use cowslip_model::{DiskFormat, Durability, HandleId};

use super::{damaged, over, sectors};
use crate::StoreError;
use crate::exceptions::{CHUNK_SECTORS, Exceptions, store_size};
use crate::layer::check_template;
use crate::layer::open_layer;

/// A block device that something can stand on.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) handle: HandleId,
    pub(super) number: DeviceNumber,
    /// Its size.
    sectors: u64,
    /// Keeps a loop device attached until a table holds it.
    _hold: Option<LoopHold>,
}

/// A row of `owner` whose object stands. Rows of objects that are gone (after a reboot, or because the
/// kernel detached a loop device with its last user) are forgotten.
fn standing_row<R: Resource>(
    site: &Site,
    owner: Owner,
    which: impl Fn(&R::Spec) -> bool,
) -> Result<Option<(HandleRow, R::Identity)>, StoreError> {
    for row in site.ledger.read(|tx| tx.handles_of(owner))? {
        if row.kind != R::KIND || !which(&row.spec::<R>()?) {
            continue;
        }
        if let Some(identity) = row.identity::<R>()?
            && site.host.probe(&row)? == Presence::Present
        {
            return Ok(Some((row, identity)));
        }
        site.host.release(&row)?;
        site.ledger.forget(&row)?;
    }
    Ok(None)
}

fn spec_of(site: &Site, role: Role, layer: &LayerRecord, table: Vec<Segment>) -> DeviceSpec {
    DeviceSpec::new(site.ledger.instance(), role, layer.id, table)
}

/// The device of a layer that some machine uses.
pub(super) fn standing(site: &Site, layer: &LayerRecord) -> Result<Found, StoreError> {
    find(site, Role::Layer, layer)?
        .ok_or_else(|| damaged(site, layer, "has no device, though it is in use".to_owned()))
}

fn find(site: &Site, role: Role, layer: &LayerRecord) -> Result<Option<Found>, StoreError> {
    let name = spec_of(site, role, layer, Vec::new()).name;
    let found = standing_row::<Device>(site, Owner::Layer(layer.id), |spec| spec.name == name)?;
    Ok(found.map(|(row, identity)| Found {
        handle: row.id,
        number: identity.number,
        sectors: sectors(layer),
        _hold: None,
    }))
}

fn make(
    site: &Site,
    role: Role,
    layer: &LayerRecord,
    table: Vec<Segment>,
    needs: &[HandleId],
    read_only: bool,
) -> Result<Found, StoreError> {
    let mut spec = spec_of(site, role, layer, table);
    spec.read_only = read_only;
    let slot = site
        .ledger
        .reserve::<Device>(Owner::Layer(layer.id), spec, needs)?;
    let held = site.host.make_device(slot)?;
    let number = held.identity().number;
    Ok(Found {
        handle: held.settle(),
        number,
        sectors: sectors(layer),
        _hold: None,
    })
}

/// What the lowest layer of a chain stands on: the template, continued by zeros to the disk's size.
pub(super) fn root_device(site: &Site, root: &LayerRecord) -> Result<Found, StoreError> {
    // Once a layer stands, so does everything below it.
    if let Some(found) = find(site, Role::Layer, root)? {
        return Ok(found);
    }
    let template = check_template(site, root.template)?;
    let image = template_loop(site, root)?;
    let image_sectors = template.size.bytes() / SECTOR;
    if image_sectors >= sectors(root) {
        return Ok(Found {
            sectors: image_sectors,
            ..image
        });
    }
    if let Some(found) = find(site, Role::Base, root)? {
        return Ok(found);
    }
    let table = vec![
        Segment {
            start: 0,
            sectors: image_sectors,
            target: over(image.number),
        },
        Segment {
            start: image_sectors,
            sectors: sectors(root) - image_sectors,
            target: Target::Zero,
        },
    ];
    make(site, Role::Base, root, table, &[image.handle], true)
}

/// The one loop device over a template's image.
fn template_loop(site: &Site, root: &LayerRecord) -> Result<Found, StoreError> {
    let owner = Owner::Template(root.template);
    let path = site.layout.template_image(root.template);
    let found = standing_row::<Loop>(site, owner, |spec| spec.path == path)?;
    if let Some((row, identity)) = found {
        return Ok(Found {
            handle: row.id,
            number: identity.number,
            sectors: 0,
            _hold: None,
        });
    }
    let spec = LoopSpec {
        path,
        read_only: true,
        flushes: false,
    };
    attach(site, owner, spec)
}

fn attach(site: &Site, owner: Owner, spec: LoopSpec) -> Result<Found, StoreError> {
    let slot = site.ledger.reserve::<Loop>(owner, spec, &[])?;
    let (held, hold) = site.host.attach_loop(slot)?;
    let number = held.identity().number;
    Ok(Found {
        handle: held.settle(),
        number,
        sectors: 0,
        _hold: Some(hold),
    })
}

/// The device of a layer over `below`, which is the layer's own where it stands already.
pub(super) fn layer_device(
    site: &Site,
    layer: &LayerRecord,
    below: &Found,
    durability: Durability,
) -> Result<Found, StoreError> {
    if let Some(found) = find(site, Role::Layer, layer)? {
        return Ok(found);
    }
    check_store(site, layer)?;
    // Rows of a loop device whose table never came to be.
    let owner = Owner::Layer(layer.id);
    let path = site.layout.layer(layer.id, layer.format);
    let spec = LoopSpec {
        path,
        read_only: layer.frozen,
        flushes: durability == Durability::Flush,
    };
    let left = standing_row::<Loop>(site, owner, |found| found.path == spec.path)?;
    if let Some((row, _)) = left {
        site.host.release(&row)?;
        site.ledger.forget(&row)?;
    }
    if below.sectors < sectors(layer) {
        let why = "is larger than the layer below it".to_owned();
        return Err(damaged(site, layer, why));
    }
    let store = attach(site, owner, spec)?;
    let target = Target::Snapshot {
        origin: below.number,
        store: store.number,
        chunk_sectors: CHUNK_SECTORS,
    };
    let table = whole(sectors(layer), target);
    let needs = [store.handle, below.handle];
    make(site, Role::Layer, layer, table, &needs, layer.frozen)
}

/// Reads a store that no machine writes, and refuses one that is damaged before the kernel sees it.
pub(super) fn check_store(site: &Site, layer: &LayerRecord) -> Result<Exceptions, StoreError> {
    if layer.format != DiskFormat::Snapshot {
        let why = "is no exception store: it was made by another backend".to_owned();
        return Err(damaged(site, layer, why));
    }
    let file = open_layer(site, layer)?;
    let wanted = store_size(layer.size.bytes(), CHUNK_SECTORS)?;
    let length = file.metadata().map(|found| found.len()).unwrap_or(0);
    if length != wanted {
        let why = format!("has {length} bytes, and should have {wanted}");
        return Err(damaged(site, layer, why));
    }
    Exceptions::read(&file, layer.size.bytes())
        .map_err(|damage| damaged(site, layer, damage.to_string()))
}
