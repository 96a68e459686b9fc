//! Answers, as far as they are used. Fields that are not named here are passed over, so that another
//! release may have more.

use std::path::PathBuf;

use serde::Deserialize;

/// What a Firecracker's machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// It has no machine yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
}

/// A Firecracker in short.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Instance {
    /// The id it was started with.
    pub id: String,
    /// What its machine is doing.
    pub state: InstanceState,
    /// Its version.
    pub vmm_version: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) firecracker_version: String,
}

/// What a machine was configured with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Configuration {
    /// Its disks.
    #[serde(default)]
    pub drives: Vec<ConfiguredDrive>,
    /// vCPUs and memory.
    #[serde(rename = "machine-config")]
    pub machine: ConfiguredMachine,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConfiguredDrive {
    /// Its id.
    pub drive_id: String,
    /// Its file or device, as Firecracker sees it.
    pub path_on_host: Option<PathBuf>,
}

/// vCPUs and memory of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConfiguredMachine {
    /// vCPUs.
    pub vcpu_count: u32,
    /// Guest memory, in MiB.
    pub mem_size_mib: u64,
    /// Whether pages that the guest writes are remembered.
    #[serde(default)]
    pub track_dirty_pages: bool,
}
