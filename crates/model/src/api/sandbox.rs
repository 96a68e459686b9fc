//! Sandboxes, their checkpoints and what differs between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Network, NetworkRequest, NetworkRules};
use crate::cpu::CpuTemplate;
use crate::id::{CheckpointId, LayerId, SandboxId, TemplateId};
use crate::limits::DiskLimits;
use crate::monitor::{Isolation, MonitorKind};
use crate::name::Name;
use crate::size::ByteSize;
use crate::spec::OnExpiry;
use crate::state::{SandboxState, Transition};
use crate::time::{Lifetime, Timestamp};

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: Name,
    /// Its template's id.
    pub template: TemplateId,
    /// A name of its template, where it has one.
    pub template_name: Option<Name>,
    /// Its kernel's name.
    pub kernel: String,
    /// Where it stands.
    pub state: SandboxState,
    /// What is being done to it.
    pub transition: Option<Transition>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Whether its vCPUs stand still because the host's disk is nearly full. It goes on by itself.
    #[serde(default)]
    pub frozen: bool,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory, in bytes.
    pub memory: ByteSize,
    /// Size of its disk, in bytes.
    pub disk: ByteSize,
    /// Bytes its layers occupy on the host's disk, those it shares with others included.
    pub disk_used: ByteSize,
    /// Depth of its chain of layers.
    pub layers: u64,
    /// "dm", "qcow2" or "copy".
    pub backend: String,
    /// Why its disk is a whole copy, where the backend makes devices.
    pub disk_fallback: Option<String>,
    /// What runs its machine.
    #[serde(default)]
    pub vmm: MonitorKind,
    /// How Firecracker is kept apart from the host; none of QEMU, which always is in the same way.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// What of its processor the guest is shown: the name of a template, or "custom".
    #[serde(default)]
    pub cpu_template: Option<String>,
    /// How fast it may use its disk.
    #[serde(default)]
    pub disk_limits: DiskLimits,
    /// Its network.
    #[serde(default)]
    pub network: Network,
    /// The monitor of its last run, as "qemu 7.2.22 (tcg)".
    pub monitor: Option<String>,
    /// Environment of its processes.
    pub env: BTreeMap<String, String>,
    /// Working directory of its processes.
    pub workdir: Option<String>,
    /// User of its processes.
    pub user: Option<String>,
    /// The command `run` was given.
    pub command: Option<Vec<String>>,
    /// How that command ended.
    pub exit_code: Option<i32>,
    /// The checkpoint it was forked from.
    pub forked_from: Option<CheckpointId>,
    /// How often it was restored.
    pub generation: u64,
    /// Pid of its monitor on the host.
    pub pid: Option<u32>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its current run began.
    pub started_at: Option<Timestamp>,
    /// When its TTL ends.
    pub expires_at: Option<Timestamp>,
    /// What becomes of it then.
    #[serde(default)]
    pub on_expiry: OnExpiry,
    /// How long the parts of its last start, fork or resume took, in order: together they are the whole.
    #[serde(default)]
    pub phases: Vec<Phase>,
}

/// A part of what was done, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Phase {
    /// Which part.
    pub name: String,
    /// In microseconds.
    pub us: u64,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Its id.
    pub id: CheckpointId,
    /// Its name.
    pub name: Name,
    /// The sandbox it was taken of.
    pub sandbox: SandboxId,
    /// That sandbox's name at the time.
    pub sandbox_name: Name,
    /// Its template's id.
    pub template: TemplateId,
    /// Its disk is all there is of it: forks of it boot. Steps of a build are such.
    #[serde(default)]
    pub disk_only: bool,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory, in bytes.
    pub memory: ByteSize,
    /// Bytes of memory and device state that it holds itself on the host's disk.
    pub memory_used: ByteSize,
    /// Images of memory that it stands on, each with what changed since the one below; 0: it holds all.
    #[serde(default)]
    pub memory_chain: u64,
    /// Bytes of its layer on the host's disk; shared with what stands on it.
    pub disk_used: ByteSize,
    /// The monitor that can restore it.
    pub monitor: String,
    /// The processor that it ran on, where it needs one like that.
    #[serde(default)]
    pub cpu: Option<String>,
    /// sha256 of its template's image.
    #[serde(default)]
    pub template_digest: Option<String>,
    /// sha256 of its kernel.
    #[serde(default)]
    pub kernel_digest: Option<String>,
    /// Milliseconds for which the vCPUs stood still.
    pub downtime_ms: f64,
    /// Milliseconds until it was published.
    pub publication_ms: f64,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// A sandbox to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Name or id of the template.
    pub template: String,
    /// Its name; none: one is made up.
    #[serde(default)]
    pub name: Option<Name>,
    /// Name or id of the kernel; none: the default one.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Virtual processors; none: 1.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Guest memory, in bytes; none: 256 MiB.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// Size of the disk, in bytes; none: the template's.
    #[serde(default)]
    pub disk: Option<ByteSize>,
    /// Environment of its processes.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory of its processes.
    #[serde(default)]
    pub workdir: Option<String>,
    /// User of its processes: a name, `uid` or `uid:gid`.
    #[serde(default)]
    pub user: Option<String>,
    /// How long it may live, in seconds.
    #[serde(default)]
    pub ttl: Option<Lifetime>,
    /// What becomes of it then; none: it is removed.
    #[serde(default)]
    pub on_expiry: Option<OnExpiry>,
    /// What runs its machine; none: as the engine's configuration says, which by default is Firecracker where it
    /// can run, else QEMU.
    #[serde(default)]
    pub vmm: Option<MonitorKind>,
    /// How Firecracker is kept apart from the host; none: as the engine's configuration says, which less
    /// than that is refused by.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// What of its processor the guest is shown, in Firecracker; none: all that it has.
    #[serde(default)]
    pub cpu_template: Option<CpuTemplate>,
    /// Bytes of its disk that it may read and write in a second; none: no limit.
    #[serde(default)]
    pub disk_bandwidth: Option<ByteSize>,
    /// Requests that it may make of its disk in a second; none: no limit.
    #[serde(default)]
    pub disk_iops: Option<u64>,
    /// Its network; none: as the engine's configuration says.
    #[serde(default)]
    pub network: NetworkRequest,
}

/// Take a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// Name or id of the sandbox.
    pub sandbox: String,
    /// Its name; none: one is made up.
    #[serde(default)]
    pub name: Option<Name>,
}

/// What the layers of a disk changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// The template below them.
    pub template: TemplateId,
    /// The first of its names.
    pub template_name: Option<Name>,
    /// Size of the disk, in bytes.
    pub size: ByteSize,
    /// The volume backend.
    pub backend: String,
    /// Bytes of the disk that the layers changed together.
    pub changed: ByteSize,
    /// Whether a machine writes the last layer: then its numbers are those of its last sync, or a
    /// little newer.
    pub live: bool,
    /// Each layer, base first.
    pub layers: Vec<LayerDiff>,
}

/// What one layer changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerDiff {
    /// Its id.
    pub id: LayerId,
    /// Bytes of the disk that it has instead of what is below it; with the `copy` backend, instead of
    /// what the template has.
    pub changed: ByteSize,
    /// Bytes of the host's disk that it occupies.
    pub occupied: ByteSize,
    /// Whether nothing writes it any more.
    pub frozen: bool,
    /// Checkpoints that have it as their last.
    pub checkpoints: Vec<Name>,
}

/// Restore sandboxes from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// How many; none: 1.
    #[serde(default)]
    pub count: Option<u32>,
    /// Its name; with several, `-1`, `-2`, … are appended.
    #[serde(default)]
    pub name: Option<Name>,
    /// How long each may live, in seconds; none: as the checkpoint's sandbox.
    #[serde(default)]
    pub ttl: Option<Lifetime>,
    /// What becomes of each then; none: as of the checkpoint's sandbox.
    #[serde(default)]
    pub on_expiry: Option<OnExpiry>,
    /// How Firecracker is kept apart from the host; none: as the checkpoint's sandbox. The configuration
    /// of the engine refuses less than it says.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// What each may reach; none: as the checkpoint's sandbox, but for the ports, which lead to that one.
    #[serde(default)]
    pub network: Option<NetworkRules>,
}

/// Stop a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Seconds its processes get to end before they are killed; none: 10. 0: kill at once.
    #[serde(default)]
    pub timeout: Option<u64>,
}
