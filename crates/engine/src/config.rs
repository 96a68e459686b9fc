//! The configuration: `/etc/cowslip/config.toml`, or `cowslip/config.toml` below the user's
//! configuration directory. Unknown keys are refused.

use std::net::IpAddr;
use std::path::PathBuf;

use cowslip_model::{ByteSize, Durability, Isolation, Lifetime};
use cowslip_network::AddressRange;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Volumes.
    pub storage: Storage,
    /// Machines.
    pub machine: Machine,
    /// Networks of sandboxes.
    pub network: Network,
    /// Imports of templates.
    pub images: Images,
    /// Registries of images.
    pub registries: cowslip_registry::Config,
    /// What a request leaves open.
    pub defaults: Defaults,
    /// Where things are; set by the command line, not by the file.
    #[serde(skip)]
    pub paths: Paths,
}

/// Networks of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// How sandboxes are connected that ask for nothing.
    pub mode: NetworkChoice,
    /// The addresses that the host knows sandboxes by: two for each.
    pub range: AddressRange,
    /// Whether the engine lets the host pass packets on (`net.ipv4.ip_forward`), where it does not.
    pub set_forwarding: bool,
    /// Whom guests' questions for names are passed on to; none: those of the host's `/etc/resolv.conf`.
    pub resolvers: Vec<IpAddr>,
    /// Networks that are kept ready for sandboxes to come.
    pub warm: u32,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mode: NetworkChoice::Auto,
            range: AddressRange::default(),
            set_forwarding: true,
            resolvers: Vec::new(),
            warm: 4,
        }
    }
}

/// How sandboxes are connected that ask for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkChoice {
    /// To the internet where this engine can make networks, else not at all.
    #[default]
    Auto,
    /// To the internet and nothing else.
    Nat,
    /// To what the monitor's user reaches.
    User,
    /// Not at all.
    None,
}

/// Imports of templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Whether imports are refused where their threads cannot be kept from the rest of the host (landlock).
    pub require_confinement: bool,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            require_confinement: true,
        }
    }
}

/// Volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// The backend; chosen once, at start.
    pub backend: BackendChoice,
    /// With less than this free on the state directory's disk, guests stand still until there is a
    /// quarter more: at most a sixteenth of the disk counts. Zero: they never do.
    pub low_water: ByteSize,
    /// What a guest's flush is worth.
    pub durability: Durability,
    /// Layers of one disk that are left as they are; of more, those below the top are merged, in the
    /// background. Zero: never. Only on the backend `dm`.
    pub chain_limit: u32,
    /// What becomes of a sandbox whose devices cannot be made.
    pub on_dm_failure: OnDmFailure,
}

/// What becomes of a sandbox whose devices cannot be made, on the backend `dm`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDmFailure {
    /// It does not start, with the error.
    #[default]
    Error,
    /// Its disk becomes a whole copy from then on, which is told by an event and its `disk_fallback`.
    Copy,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            backend: BackendChoice::default(),
            low_water: ByteSize(1 << 30),
            durability: Durability::default(),
            chain_limit: 8,
            on_dm_failure: OnDmFailure::default(),
        }
    }
}

/// Which backend to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// The best that this host can do.
    #[default]
    Auto,
    /// Exception stores of dm-snapshot.
    Dm,
    /// qcow2 overlays.
    Qcow2,
    /// Whole copies, by reflink where the file system can.
    Copy,
}

/// Machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// The monitor of sandboxes that ask for none.
    pub vmm: MonitorChoice,
    /// The least that Firecracker is kept apart from the host, and what sandboxes get that ask for
    /// nothing; QEMU always is in the same way.
    pub isolation: Isolation,
    /// The accelerator of QEMU; Firecracker has only KVM.
    pub accelerator: AcceleratorChoice,
    /// Images of memory that a checkpoint may stand on, each with what changed since the one below; the next is
    /// whole. Zero: every one is, and what guests write is not tracked; at most 64. Only in Firecracker.
    #[serde(deserialize_with = "memory_chain")]
    pub memory_chain: u32,
    /// Whether Firecracker must run with its seccomp filters. Builds for glibc and debug builds have empty ones.
    pub require_seccomp: bool,
    /// First of the uids that machines run under when the engine is root; each sandbox has its own.
    pub uid_base: u32,
    /// How many there are.
    pub uid_count: u32,
    /// The console log of a sandbox is cut to its newest half past this many bytes.
    pub console_bound: ByteSize,
    /// The log of a sandbox's main process is cut likewise.
    pub log_bound: ByteSize,
    /// Seconds a guest may take from its start until its agent answers.
    pub boot_timeout: u64,
    /// Seconds a restored guest may take until its agent answers.
    pub restore_timeout: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            vmm: MonitorChoice::Auto,
            isolation: Isolation::Jail,
            accelerator: AcceleratorChoice::Auto,
            memory_chain: 8,
            require_seccomp: true,
            uid_base: 2_000_000,
            uid_count: 65_536,
            console_bound: ByteSize::mib(1),
            log_bound: ByteSize::mib(16),
            boot_timeout: 180,
            restore_timeout: 60,
        }
    }
}

/// Which monitor to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MonitorChoice {
    /// Firecracker where it can run, else QEMU.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
    /// Firecracker, or an error.
    Firecracker,
}

/// The longest chain of images. Each has a name in the directory of every checkpoint that stands on it.
const MEMORY_CHAIN_MAX: u32 = 64;

fn memory_chain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let given = u32::deserialize(deserializer)?;
    if given > MEMORY_CHAIN_MAX {
        return Err(D::Error::custom(format!(
            "a memory_chain of {given}: give at most {MEMORY_CHAIN_MAX}"
        )));
    }
    Ok(given)
}

/// Which accelerator to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM where a guest really boots on it, else TCG.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// What a request leaves open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory: ByteSize,
    /// Name of the kernel; none: the one imported last.
    pub kernel: Option<String>,
    /// How long a sandbox may live, in seconds; none: as long as it likes.
    pub ttl: Option<Lifetime>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: ByteSize::mib(256),
            kernel: None,
            ttl: None,
        }
    }
}

/// Where things are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// The state directory.
    pub state: PathBuf,
    /// The run directory.
    pub run: PathBuf,
    /// The agent's binary; none: beside this program, then `/usr/lib/cowslip`.
    pub agent: Option<PathBuf>,
    /// The QEMU program; none: from `PATH`.
    pub qemu: Option<PathBuf>,
    /// Firecracker's program; none: `COWSLIP_FIRECRACKER`, else `firecracker` on the PATH.
    pub firecracker: Option<PathBuf>,
    /// Firecracker's jailer; none: `COWSLIP_JAILER`, else `jailer` on the PATH.
    pub jailer: Option<PathBuf>,
    /// Where probes of this host are remembered.
    pub cache: PathBuf,
}
