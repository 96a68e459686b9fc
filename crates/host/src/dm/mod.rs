//! Devices of device-mapper. Acquire by create, load and resume; release by removal, trying again
//! only while the kernel says that the device is busy (R20).
//!
//! A device is known by its name *and* its uuid, which both carry the engine's instance: a device of
//! that name with another uuid is somebody else's and is never touched.

mod control;
mod events;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use cowslip_model::InstanceId;
use serde::{Deserialize, Serialize};

pub use control::{Control, Status};
pub use events::{Broken, DeviceEvents};
pub use table::{DeviceNumber, NoDeviceNumber, SECTOR, Segment, Target, whole};

use crate::error::HostError;

/// Tries to remove a busy device, and the pause before the second; each is twice the one before. What
/// holds a device for a moment is a scan of udev's, or the kernel closing what a killed process had.
const REMOVE_TRIES: u32 = 8;
const REMOVE_PAUSE: Duration = Duration::from_millis(4);

/// The kind.
#[derive(Debug)]
pub struct Device;

/// A device to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Its name: `cowslip-<instance>-<role>-<id>`.
    pub name: String,
    /// Its uuid: the same in device-mapper's manner.
    pub uuid: String,
    /// What it is made of.
    pub table: Vec<Segment>,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// What a device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What a monitor opens: a way to the sandbox's top layer that can be switched.
    Disk,
    /// A layer: what it changed over what lies below.
    Layer,
    /// A template continued by zeros.
    Base,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Layer => "layer",
            Self::Base => "base",
        }
    }
}

/// Which device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Its number. Another device may have it after this one has gone.
    #[serde(flatten)]
    pub number: DeviceNumber,
}

impl Resource for Device {
    const KIND: &'static str = "dm";
    type Spec = DeviceSpec;
    type Identity = DeviceIdentity;
}

/// What device-mapper did not do.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// There is none, or not for this user.
    #[error("open \"{path}\": {source}")]
    Control {
        /// The control device.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("{operation} \"{name}\": {source}")]
    Call {
        /// What was being done.
        operation: &'static str,
        /// To which device.
        name: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A device is made of something that we never make.
    #[error("the device \"{name}\" has the foreign table {table}: it is left alone")]
    Table {
        /// It.
        name: String,
        /// Its table.
        table: String,
    },
    /// A busy device.
    #[error("remove the device \"{name}\": it is in use by {}", holders.join(", "))]
    Busy {
        /// It.
        name: String,
        /// Devices and processes that have it open.
        holders: Vec<String>,
    },
}

impl DmError {
    pub(crate) fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Call { source, .. } if source.raw_os_error() == Some(errno))
    }
}

impl DeviceSpec {
    /// The device of `role` for the object `id`.
    #[must_use]
    pub fn new(
        instance: InstanceId,
        role: Role,
        id: impl std::fmt::Display,
        table: Vec<Segment>,
    ) -> Self {
        Self {
            name: format!("cowslip-{instance}-{}-{id}", role.word()),
            uuid: format!("COWSLIP-{instance}-{}-{id}", role.word()),
            table,
            read_only: false,
        }
    }
}

/// Whether a device's name and uuid are of this instance.
pub(crate) fn is_of(instance: InstanceId, spec: &DeviceSpec) -> bool {
    spec.name.starts_with(&format!("cowslip-{instance}-"))
        && spec.uuid.starts_with(&format!("COWSLIP-{instance}-"))
}

/// The path of a device's node.
#[must_use]
pub fn node(number: DeviceNumber) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{}", number.minor))
}

/// Whether this engine can use device-mapper: the control device, the targets, loop devices.
///
/// # Errors
/// What is missing.
pub fn usable() -> Result<(), HostError> {
    let control = Control::open()?;
    for target in ["snapshot", "linear", "zero"] {
        control.target_version(target)?;
    }
    crate::loops::usable()
}

pub(crate) fn acquire(slot: Reservation<Device>) -> Result<Held<Device>, HostError> {
    let control = Control::open()?;
    let spec = slot.spec().clone();
    let made = match control.create(&spec.name, &spec.uuid) {
        // One of ours that lost its row, and that nobody uses, makes way (R21).
        Err(error) if error.is(libc::EBUSY) && is_stale(&control, &spec)? => {
            control.remove(&spec.name)?;
            control.create(&spec.name, &spec.uuid)?
        }
        other => other?,
    };
    let worked = control
        .load(&spec.name, &spec.table, spec.read_only)
        .and_then(|()| control.resume(&spec.name));
    if let Err(error) = worked {
        // The row stays: should this fail too, the owner's unwinding tries again.
        let _ = control.remove(&spec.name);
        return Err(error.into());
    }
    let number = made.number;
    Ok(slot.acquired(DeviceIdentity { number })?)
}

/// Whether a device of this very name and uuid is there, and not open.
fn is_stale(control: &Control, spec: &DeviceSpec) -> Result<bool, DmError> {
    let found = control.status(&spec.name)?;
    Ok(found.is_some_and(|found| found.uuid == spec.uuid && found.open_count == 0))
}

/// Gives a working device another table: at every instant it has the old one or the new one.
pub(crate) fn switch(spec: &DeviceSpec, table: &[Segment]) -> Result<(), HostError> {
    let control = Control::open()?;
    control.load(&spec.name, table, spec.read_only)?;
    // One command: what is on its way arrives under the old table, then the new one is in place.
    if let Err(error) = control.resume(&spec.name) {
        let _ = control.clear(&spec.name);
        let _ = control.resume(&spec.name);
        return Err(error.into());
    }
    Ok(())
}

/// The table that the device works with.
pub(crate) fn table_of(spec: &DeviceSpec) -> Result<Vec<Segment>, HostError> {
    Ok(Control::open()?.table(&spec.name)?)
}

pub(crate) fn probe(spec: &DeviceSpec) -> Result<Presence, HostError> {
    let Some(control) = present()? else {
        return Ok(Presence::Absent);
    };
    Ok(match control.status(&spec.name)? {
        None => Presence::Absent,
        Some(found) if found.uuid == spec.uuid => Presence::Present,
        Some(_) => Presence::Foreign,
    })
}

/// The control device; none where this kernel has no device-mapper, and so no devices of it.
fn present() -> Result<Option<Control>, HostError> {
    match Control::open() {
        Ok(control) => Ok(Some(control)),
        Err(DmError::Control { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound
                || source.raw_os_error() == Some(libc::ENXIO)
                || source.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// `made`: whether it is known that the device was made. What stands in the place of one that was not
/// is the reason why.
pub(crate) fn release(spec: &DeviceSpec, made: bool) -> Result<(), HostError> {
    match probe(spec)? {
        Presence::Absent => return Ok(()),
        Presence::Foreign if !made => return Ok(()),
        Presence::Foreign => {
            return Err(HostError::Foreign {
                path: Path::new("/dev/mapper").join(&spec.name),
                why: "it has another uuid".to_owned(),
            });
        }
        Presence::Present => {}
    }
    let control = Control::open()?;
    let mut pause = REMOVE_PAUSE;
    for attempt in 1.. {
        match control.remove(&spec.name) {
            Ok(()) => return Ok(()),
            Err(error) if error.is(libc::ENXIO) => return Ok(()),
            Err(error) if error.is(libc::EBUSY) && attempt < REMOVE_TRIES => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(error) if error.is(libc::EBUSY) => {
                let number = control.status(&spec.name)?.map(|found| found.number);
                return Err(DmError::Busy {
                    name: spec.name.clone(),
                    holders: number.map_or_else(Vec::new, crate::holders::of),
                }
                .into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Devices of this instance that no name in `known` accounts for, those that others stand on last.
pub(crate) fn strays(
    instance: InstanceId,
    known: &std::collections::HashSet<&str>,
) -> Result<Vec<DeviceSpec>, HostError> {
    let control = match present() {
        Ok(Some(control)) => control,
        Ok(None) => return Ok(Vec::new()),
        // Who may not ask has made none; one that root made for this instance has a row, which tells.
        Err(HostError::Device(DmError::Control { source, .. }))
            if source.kind() == std::io::ErrorKind::PermissionDenied
                && !crate::process::is_root() =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let (name_mark, uuid_mark) = (
        format!("cowslip-{instance}-"),
        format!("COWSLIP-{instance}-"),
    );
    let mut found = Vec::new();
    for name in control.names()? {
        if !name.starts_with(&name_mark) || known.contains(name.as_str()) {
            continue;
        }
        let Some(status) = control.status(&name)? else {
            continue;
        };
        if status.uuid.starts_with(&uuid_mark) {
            found.push((name, status));
        }
    }
    Ok(users_first(&control, found))
}

/// Orders devices so that none comes before one that uses it.
fn users_first(control: &Control, mut left: Vec<(String, Status)>) -> Vec<DeviceSpec> {
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let used: Vec<DeviceNumber> = left
            .iter()
            .flat_map(|(name, _)| control.table(name).unwrap_or_default())
            .flat_map(|segment| match segment.target {
                Target::Linear { device, .. } => vec![device],
                Target::Zero => Vec::new(),
                Target::Snapshot { origin, store, .. } => vec![origin, store],
            })
            .collect();
        let (next, rest): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|(_, status)| !used.contains(&status.number));
        left = rest;
        if next.is_empty() {
            // Devices cannot stand on one another in a circle.
            break;
        }
        ordered.extend(next.into_iter().map(|(name, status)| DeviceSpec {
            name,
            uuid: status.uuid,
            table: Vec::new(),
            read_only: false,
        }));
    }
    ordered
}
