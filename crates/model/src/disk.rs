//! What a machine monitor must open to see a sandbox's disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How the bytes of one file of a chain are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's own bytes, or a block device.
    Raw,
    /// A qcow2 overlay; its backing file is the next layer below.
    Qcow2,
    /// A persistent exception store of device-mapper's snapshot target. No monitor opens it: what it
    /// opens is a device over it.
    Snapshot,
}

/// What a flush of the guest's is worth.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Flushed data is safe from the guest's and the engine's end, not from a power cut of the host;
    /// what is published (a checkpoint, a pause, a template) is safe from both.
    #[default]
    Published,
    /// Every flush reaches the host's disk.
    Flush,
}

/// One file of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskLayer {
    /// Absolute path of the file or block device.
    pub path: PathBuf,
    /// How it is laid out.
    pub format: DiskFormat,
}

/// A sandbox's disk: the template (or a device over it) first, the one writable layer last.
///
/// Everything below `top` is read-only and may be shared with other sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChain {
    /// Read-only layers, base first. Empty where the top stands alone (a copy, a dm device).
    pub frozen: Vec<DiskLayer>,
    /// The writable layer.
    pub top: DiskLayer,
    /// Size of the disk that the guest sees, in bytes.
    pub size: u64,
    /// What the guest's flushes are worth.
    pub durability: Durability,
}
