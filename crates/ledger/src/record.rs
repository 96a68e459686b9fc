//! The objects of the ledger, one record each. A record is stored as JSON beside the columns that
//! other rows refer to, so that a new field needs no migration.

use cowslip_model::api::Phase;
use cowslip_model::{
    ByteSize, CheckpointId, DiskFormat, HostCpu, ImageConfig, KernelId, LayerId, Name, ProcessId,
    SandboxId, SandboxSpec, SandboxState, TemplateId, Timestamp, Transition,
};
use serde::{Deserialize, Serialize};

/// By which a file is known to be as it was: cheaper to look at than its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Its inode number.
    pub inode: u64,
    /// When it was written last, in nanoseconds since 1970.
    pub modified: i64,
}

/// A root file system image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// The first 16 digits of the image's sha256: the same content is the same template.
    pub id: TemplateId,
    /// The names it goes by, sorted.
    pub names: Vec<Name>,
    /// sha256 of the image, 64 hexadecimal digits.
    pub digest: String,
    /// Size of the image's disk, in bytes.
    pub size: ByteSize,
    /// Bytes of the image that hold data.
    pub used: ByteSize,
    /// Files, directories and links in it.
    pub entries: u64,
    /// What it was made from: "directory", "tar", "docker archive", …
    pub source: String,
    /// How it is run, where its image says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// The layers that its image is made of (sha256 of their digests) and the size that was asked for: another
    /// image of the same is this one. None for what has no layers with digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<String>,
    /// What the image's file was like when its content was known to be that of the digest.
    pub stamp: Option<FileStamp>,
    /// When it was imported.
    pub created_at: Timestamp,
}

/// A guest kernel with its initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// Its id.
    pub id: KernelId,
    /// Its name.
    pub name: Name,
    /// Release, as `uname -r` in the guest will say.
    pub release: String,
    /// sha256 of the kernel image.
    pub digest: String,
    /// "bzImage" or "elf".
    pub format: String,
    /// Modules carried in the initramfs.
    pub modules: u64,
    /// Bytes of kernel and initramfs.
    pub size: ByteSize,
    /// When it was imported.
    pub created_at: Timestamp,
}

/// One copy-on-write layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Its id; the file is named by it.
    pub id: LayerId,
    /// The template at the bottom of its chain.
    pub template: TemplateId,
    /// The layer right below; none: the template itself.
    pub parent: Option<LayerId>,
    /// How the file is laid out.
    pub format: DiskFormat,
    /// Size of the disk, in bytes.
    pub size: ByteSize,
    /// Frozen layers are never written again and may be shared.
    pub frozen: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// The monitor that a machine's state belongs to; a restore under an incompatible one is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorInfo {
    /// "qemu" or "firecracker".
    pub kind: String,
    /// Its version.
    pub version: String,
    /// "kvm" or "tcg".
    pub accelerator: String,
    /// The machine type.
    pub machine: String,
    /// What it needs of the host's processor; none where that is emulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<HostCpu>,
}

/// The command that `run` was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainProcess {
    /// Its id in the guest.
    pub process: ProcessId,
    /// The command line.
    pub argv: Vec<String>,
    /// Exit code as a shell would give it, once it has ended.
    pub exit_code: Option<i32>,
    /// The sandbox runs on when it has ended.
    pub keep: bool,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: Name,
    /// What it is made of.
    pub spec: SandboxSpec,
    /// Where it stands.
    pub state: SandboxState,
    /// What is being done to it; written before the doing.
    pub transition: Option<Transition>,
    /// Why it failed, and what failed while that was cleaned up.
    pub reason: Option<String>,
    /// The writable layer of its volume.
    pub layer: Option<LayerId>,
    /// The layer that is to become the writable one, while a swap is under way.
    pub next_layer: Option<LayerId>,
    /// Counts restores: the guest is told, so that it knows that it was restored (R52). A TTL holds
    /// for one sandbox id only (R35).
    pub generation: u64,
    /// The checkpoint it was forked from.
    pub forked_from: Option<CheckpointId>,
    /// The memory image in its directory is whole: it can be resumed.
    pub paused_image: bool,
    /// The monitor of its machine, or of its paused image.
    pub monitor: Option<MonitorInfo>,
    /// Why its disk is a whole copy, where the backend makes devices.
    #[serde(default)]
    pub disk_fallback: Option<String>,
    /// What its machine's memory was at the last save or restore lies in its directory, and so many images that
    /// it stands on; the monitor knows what was written since then. None: nobody knows.
    #[serde(default)]
    pub memory_base: Option<u32>,
    /// How long the parts of its last start took.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// The command `run` was given.
    pub main: Option<MainProcess>,
    /// Remove it when its main process ends.
    pub auto_remove: bool,
    /// Number of its machine's uid and of its addresses, in the configured ranges.
    pub slot: u32,
    /// Its machine may be under other network rules than those of its specification.
    #[serde(default)]
    pub network_pending: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its current run began.
    pub started_at: Option<Timestamp>,
    /// When its TTL ends.
    pub expires_at: Option<Timestamp>,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// Its id.
    pub id: CheckpointId,
    /// Its name.
    pub name: Name,
    /// The sandbox it was taken of; that one may be gone.
    pub sandbox: SandboxId,
    /// Its name at the time.
    pub sandbox_name: Name,
    /// What the sandbox is made of (R33).
    pub spec: SandboxSpec,
    /// The command that ran in it.
    pub main: Option<MainProcess>,
    /// The frozen layer that is its disk.
    pub layer: LayerId,
    /// The sandbox's generation.
    pub generation: u64,
    /// The monitor that can restore it.
    pub monitor: MonitorInfo,
    /// sha256 of the template's image that its disk stands on.
    #[serde(default)]
    pub template_digest: Option<String>,
    /// sha256 of the kernel image that runs in its memory.
    #[serde(default)]
    pub kernel_digest: Option<String>,
    /// Its disk is all there is of it: sandboxes on it boot.
    #[serde(default)]
    pub disk_only: bool,
    /// Bytes of memory and device state on disk.
    pub memory_bytes: ByteSize,
    /// Images that its memory stands on; zero: it is whole.
    #[serde(default)]
    pub memory_chain: u32,
    /// The boot in which its whole image was put together from these.
    #[serde(default)]
    pub whole_since: Option<String>,
    /// How long the vCPUs stood still, in microseconds.
    pub downtime_us: u64,
    /// How long until it was published, in microseconds.
    pub publication_us: u64,
    /// False while it is being written; nobody sees such a one.
    pub ready: bool,
    /// When it was begun.
    pub created_at: Timestamp,
}

impl KernelRecord {
    /// Nothing refers to it by its id alone.
    #[must_use]
    pub fn key(&self) -> KernelId {
        self.id
    }
}

/// Something that happened, for `cowslip events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Its number; grows without gaps being promised.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// What: `sandbox.started`, `checkpoint.created`, …
    pub kind: String,
    /// The object's id.
    pub id: String,
    /// The object's name, where it has one.
    pub name: Option<String>,
    /// More, by kind.
    pub detail: serde_json::Value,
}
