//! Bodies of requests, as Firecracker's API description names their fields.

use std::path::PathBuf;

use cowslip_model::NamedCpuTemplate;
use serde::Serialize;

/// What a machine boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// The kernel's file: an ELF `vmlinux`, or from release 1.17 on a bzImage.
    pub kernel_image_path: PathBuf,
    /// The initramfs' file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; Firecracker adds its devices to it.
    pub boot_args: String,
}

/// What a guest's flush of its disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum CacheType {
    /// Nothing: the guest is not offered one.
    Unsafe,
    /// It presses the disk's file onto the host's disk.
    Writeback,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// Its id, which is also part of the request's path.
    pub drive_id: String,
    /// The file or block device, as Firecracker sees it. Snapshots record this path.
    pub path_on_host: PathBuf,
    /// Whether Firecracker names it on the kernel's command line; the initramfs finds ours.
    pub is_root_device: bool,
    /// Whether the guest may not write it.
    pub is_read_only: bool,
    /// What a guest's flush does.
    pub cache_type: CacheType,
    /// How fast it may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// The guest's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkDevice {
    /// Its id, which is also part of the request's path.
    pub iface_id: String,
    /// The name of its tap, in the network namespace that Firecracker is in. Snapshots record it.
    pub host_dev_name: String,
    /// Its hardware address.
    pub guest_mac: String,
    /// How fast it may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// How fast it may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// How fast a device may be used; what is none is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// So many in a time, evenly; what was saved up, at most as many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenBucket {
    /// How many.
    pub size: u64,
    /// In so many milliseconds.
    pub refill_time: u64,
}

impl TokenBucket {
    /// So many in a second.
    #[must_use]
    pub const fn per_second(size: u64) -> Self {
        Self {
            size,
            refill_time: 1000,
        }
    }
}

/// vCPUs and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineConfiguration {
    /// 1 to 32.
    pub vcpu_count: u32,
    /// Guest memory, in MiB.
    pub mem_size_mib: u64,
    /// Whether pages that the guest writes are remembered, which diff snapshots need.
    pub track_dirty_pages: bool,
    /// What of the processor the guest is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<NamedCpuTemplate>,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address, 3 or more.
    pub guest_cid: u32,
    /// The socket that Firecracker makes, as it sees it. Snapshots record this path.
    pub uds_path: PathBuf,
}

/// The entropy device: without a rate limit there is nothing to say of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Entropy {}

/// The memory balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Balloon {
    /// Memory taken from the guest, in MiB.
    pub amount_mib: u64,
    /// Whether the guest gets it back before it runs out of memory.
    pub deflate_on_oom: bool,
    /// Whether the guest tells which pages it has free, so that the host can use them.
    pub free_page_reporting: bool,
}

/// Things to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
pub(super) enum Action {
    InstanceStart,
}

/// What the vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub(super) enum StateChange {
    Paused,
    Resumed,
}

/// What of the memory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SnapshotKind {
    /// All of it.
    Full,
    /// What was written since the last snapshot; the rest of the file is a hole.
    Diff,
}

/// A snapshot to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotCreate {
    /// How much of the memory.
    pub snapshot_type: SnapshotKind,
    /// The file for the device state, as Firecracker sees it.
    pub snapshot_path: PathBuf,
    /// The file for the memory.
    pub mem_file_path: PathBuf,
}

/// A snapshot to be loaded. The vCPUs stand still afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "LoadBody")]
pub struct SnapshotLoad {
    /// The file with the device state, as Firecracker sees it.
    pub state: PathBuf,
    /// The file with the memory. It is mapped privately: the guest's writes never reach it.
    pub memory: PathBuf,
    /// Whether pages that the guest writes are remembered from now on.
    pub track_dirty_pages: bool,
    /// Another socket for the vsock device than the one that the snapshot records.
    pub vsock: Option<PathBuf>,
}

#[derive(Serialize)]
struct LoadBody {
    snapshot_path: PathBuf,
    mem_backend: MemoryBackend,
    track_dirty_pages: bool,
    resume_vm: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    vsock_override: Option<VsockOverride>,
}

#[derive(Serialize)]
struct MemoryBackend {
    backend_type: &'static str,
    backend_path: PathBuf,
}

#[derive(Serialize)]
struct VsockOverride {
    uds_path: PathBuf,
}

impl From<SnapshotLoad> for LoadBody {
    fn from(load: SnapshotLoad) -> Self {
        Self {
            snapshot_path: load.state,
            mem_backend: MemoryBackend {
                backend_type: "File",
                backend_path: load.memory,
            },
            track_dirty_pages: load.track_dirty_pages,
            resume_vm: false,
            vsock_override: load.vsock.map(|uds_path| VsockOverride { uds_path }),
        }
    }
}
