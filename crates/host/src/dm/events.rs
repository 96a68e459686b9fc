//! What happens to devices, without looking at them again and again.
//!
//! The control device becomes readable when any device of the host has had an event; how many events
//! each has had is in the list of all devices. So one event costs one command, and one more for each
//! device of ours that it was about.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cowslip_model::InstanceId;
use tokio::io::unix::AsyncFd;

use super::Role;
use super::control::Control;
use crate::error::HostError;

/// The kind of target that can break.
const SNAPSHOT: &str = "snapshot";
/// What such a target says of itself when it takes no more writes.
const BROKEN: [&str; 3] = ["Invalid", "Overflow", "Merge failed"];

/// A layer whose device takes no more writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Id of the layer.
    pub layer: String,
    /// What the kernel says: "Invalid" after a write to the store failed, "Overflow" when it is full.
    pub state: String,
}

struct Source(Control);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.file().as_fd().as_raw_fd()
    }
}

/// Events of the devices of one instance.
pub struct DeviceEvents {
    control: AsyncFd<Source>,
    prefix: String,
    /// Events that each layer's device had had when it was looked at last.
    seen: Mutex<HashMap<String, u32>>,
}

impl DeviceEvents {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no device-mapper, or one without such events (before Linux 4.13).
    pub fn open(instance: InstanceId) -> Result<Self, HostError> {
        let control = Control::open()?;
        control.arm()?;
        // SAFETY: the descriptor is that of the file in `Source`, which keeps it open, and the same,
        // until the `AsyncFd` that owns it is dropped.
        let control = unsafe { AsyncFd::register(Source(control)) }.map_err(|error| {
            HostError::path("wait for", Path::new("/dev/mapper/control"))(error.into_parts().1)
        })?;
        Ok(Self {
            control,
            prefix: format!("cowslip-{instance}-{}-", Role::Layer.word()),
            seen: Mutex::default(),
        })
    }

    /// Waits for the next event of any device.
    ///
    /// # Errors
    /// When the kernel does not take the wish.
    pub async fn next(&self) -> Result<(), HostError> {
        let mut ready = self.control.readable().await.map_err(HostError::path(
            "wait for",
            Path::new("/dev/mapper/control"),
        ))?;
        // Before the devices are looked at: an event while they are makes it readable again.
        self.control.get_ref().0.arm()?;
        ready.clear_ready();
        Ok(())
    }

    /// Layers that broke since the last call; by the first, all that are broken.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn broken(&self) -> Result<Vec<Broken>, HostError> {
        let control = &self.control.get_ref().0;
        let devices = control.events()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::with_capacity(seen.len());
        let mut found = Vec::new();
        for (name, events) in devices {
            let Some(layer) = name.strip_prefix(&self.prefix) else {
                continue;
            };
            if seen.get(layer) != Some(&events) {
                // A device that went meanwhile is nobody's.
                let targets = control.target_status(&name).unwrap_or_default();
                let state = targets
                    .into_iter()
                    .filter(|(_, _, kind, _)| kind == SNAPSHOT)
                    .map(|(_, _, _, words)| words)
                    .find(|words| BROKEN.contains(&words.as_str()));
                // A layer's second device has more to its name.
                let layer = layer.split('-').next().unwrap_or(layer);
                found.extend(state.map(|state| Broken {
                    layer: layer.to_owned(),
                    state,
                }));
            }
            now.insert(layer.to_owned(), events);
        }
        *seen = now;
        Ok(found)
    }
}
