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
use crate::exceptions::{self, CHUNK_SECTORS, Damage, Exceptions, store_size, validation};
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

fn spec_of(site: &Site, role: Role, id: &str, table: Vec<Segment>) -> DeviceSpec {
    DeviceSpec::new(site.ledger.instance(), role, id, table)
}

/// A device of a layer that stands, and what it is made of.
pub(super) struct Standing {
    pub(super) row: HandleRow,
    pub(super) number: DeviceNumber,
    spec: DeviceSpec,
}

impl Standing {
    /// What lies below the layer, by this device.
    fn origin(&self) -> Option<DeviceNumber> {
        match self.spec.table.first().map(|segment| segment.target) {
            Some(Target::Snapshot { origin, .. }) => Some(origin),
            _ => None,
        }
    }

    pub(super) fn stands_on(&self, below: &Found) -> bool {
        self.origin() == Some(below.number)
    }

    pub(super) fn found(&self, layer: &LayerRecord) -> Found {
        Found {
            handle: self.row.id,
            number: self.number,
            sectors: sectors(layer),
            _hold: None,
        }
    }
}

/// The devices of a layer that stand. There is one; and a second after what lay below the layer was
/// merged, as long as machines use the first.
pub(super) fn standing(site: &Site, layer: &LayerRecord) -> Result<Vec<Standing>, StoreError> {
    let mut found = Vec::new();
    for row in site
        .ledger
        .read(|tx| tx.handles_of(Owner::Layer(layer.id)))?
    {
        if row.kind != Device::KIND {
            continue;
        }
        let spec = row.spec::<Device>()?;
        let identity = row.identity::<Device>()?;
        if let Some(identity) = identity
            && site.host.probe(&row)? == Presence::Present
        {
            found.push(Standing {
                row,
                number: identity.number,
                spec,
            });
        } else {
            forget(site, &row)?;
        }
    }
    found.retain(|one| one.origin().is_some());
    Ok(found)
}

fn forget(site: &Site, row: &HandleRow) -> Result<(), StoreError> {
    site.host.release(row)?;
    Ok(site.ledger.forget(row)?)
}

/// The device of a layer that the disk with this number is put on.
pub(super) fn under_disk(
    site: &Site,
    layer: &LayerRecord,
    number: DeviceNumber,
) -> Result<Standing, StoreError> {
    standing(site, layer)?
        .into_iter()
        .find(|one| one.number == number)
        .ok_or_else(|| damaged(site, layer, "has no device, though it is in use".to_owned()))
}

/// The template continued by zeros, where that stands.
fn find_base(site: &Site, root: &LayerRecord) -> Result<Option<Found>, StoreError> {
    let name = spec_of(site, Role::Base, &root.id.to_string(), Vec::new()).name;
    let found = standing_row::<Device>(site, Owner::Layer(root.id), |spec| spec.name == name)?;
    Ok(found.map(|(row, identity)| Found {
        handle: row.id,
        number: identity.number,
        sectors: sectors(root),
        _hold: None,
    }))
}

fn make(
    site: &Site,
    role: Role,
    id: &str,
    layer: &LayerRecord,
    table: Vec<Segment>,
    needs: &[HandleId],
    read_only: bool,
) -> Result<Found, StoreError> {
    let mut spec = spec_of(site, role, id, table);
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
    let template = check_template(site, root.template)?;
    let image = template_loop(site, root)?;
    let image_sectors = template.size.bytes() / SECTOR;
    if image_sectors >= sectors(root) {
        return Ok(Found {
            sectors: image_sectors,
            ..image
        });
    }
    if let Some(found) = find_base(site, root)? {
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
    let id = root.id.to_string();
    make(site, Role::Base, &id, root, table, &[image.handle], true)
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

/// The device of a layer over `below`, found standing or made.
///
/// A frozen layer can stand twice with the same content, over what lay below it at first and over what
/// that was merged into. One that is written stands once: what was made of it for reading only, by a
/// freeze that failed, has missed what was written since and goes.
pub(super) fn layer_device(
    site: &Site,
    layer: &LayerRecord,
    below: &Found,
    durability: Durability,
) -> Result<Found, StoreError> {
    let mut others = false;
    for one in standing(site, layer)? {
        let usable = layer.frozen || !one.spec.read_only;
        if usable && one.stands_on(below) {
            return Ok(one.found(layer));
        }
        if layer.frozen {
            others = true;
        } else {
            forget(site, &one.row)?;
        }
    }
    take_up(site, layer)?;
    release_unused_loops(site, layer)?;
    if below.sectors < sectors(layer) {
        let why = "is larger than the layer below it".to_owned();
        return Err(damaged(site, layer, why));
    }
    let spec = LoopSpec {
        path: site.layout.layer(layer.id, layer.format),
        read_only: layer.frozen,
        flushes: durability == Durability::Flush,
    };
    let store = attach(site, Owner::Layer(layer.id), spec)?;
    let target = Target::Snapshot {
        origin: below.number,
        store: store.number,
        chunk_sectors: CHUNK_SECTORS,
    };
    let table = whole(sectors(layer), target);
    let needs = [store.handle, below.handle];
    let id = if others {
        format!("{}-{}", layer.id, below.handle)
    } else {
        layer.id.to_string()
    };
    make(site, Role::Layer, &id, layer, table, &needs, layer.frozen)
}

/// Removes what a freeze that failed made of a layer that is still written.
pub(super) fn release_read_only(site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
    for one in standing(site, layer)? {
        if one.spec.read_only {
            forget(site, &one.row)?;
        }
    }
    Ok(())
}

/// Loop devices over a layer's store whose table never came to be.
fn release_unused_loops(site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
    let rows = site
        .ledger
        .read(|tx| tx.handles_of(Owner::Layer(layer.id)))?;
    let used: Vec<HandleId> = rows.iter().flat_map(|row| row.depends_on.clone()).collect();
    rows.iter()
        .filter(|row| row.kind == Loop::KIND && !used.contains(&row.id))
        .try_for_each(|row| forget(site, row))
}

/// Reads a store, and refuses one that is damaged. One that the kernel has invalidated has all that it
/// had taken until then.
pub(super) fn check_store(site: &Site, layer: &LayerRecord) -> Result<Exceptions, StoreError> {
    read_store(site, layer).map(|(found, _)| found)
}

/// Checks a store that no machine writes before the kernel sees it, and lets the kernel take it where it
/// once gave it up: the disk is as after a power cut then.
fn take_up(site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
    let (_, valid) = read_store(site, layer)?;
    if valid {
        return Ok(());
    }
    let path = site.layout.layer(layer.id, layer.format);
    tracing::warn!(
        layer = %layer.id,
        "the kernel had given this layer up over a write that failed; what it had taken before is used"
    );
    let (at, bytes) = validation();
    Ok(site.host.rewrite(&path, at, &bytes)?)
}

/// Refuses a layer that lost a write: nothing may be published that stands on it.
pub(super) fn require_valid(site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
    let file = open_layer(site, layer)?;
    match exceptions::is_valid(&file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged(site, layer, Damage::Invalidated.to_string())),
        Err(damage) => Err(damaged(site, layer, damage.to_string())),
    }
}

fn read_store(site: &Site, layer: &LayerRecord) -> Result<(Exceptions, bool), StoreError> {
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
    Exceptions::read_any(&file, layer.size.bytes())
        .map_err(|damage| damaged(site, layer, damage.to_string()))
}
