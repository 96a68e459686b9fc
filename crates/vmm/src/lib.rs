//! The machine monitor: what runs one virtual machine.
//!
//! ```text
//!            boot ──► running ◄──pause/resume──► paused ──save──► image file
//!   image ─ restore ─► paused (vCPUs have not run yet)
//!   pid, sockets ─ attach ─► running or paused, after an engine restart
//! ```
//!
//! A monitor's process, sockets and pipes are handles of [`Owner::Machine`]: the monitor reserves
//! and acquires them through the [`Site`]; it never releases them. Ending a machine is unwinding its
//! owner, on every path (R13).
//!
//! [`Owner::Machine`]: cowslip_ledger::Owner::Machine

mod console;
mod cpu;
mod ending;
pub mod firecracker;
pub mod qemu;
mod words;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::{HostError, NetnsSpec, Site};
use cowslip_ledger::{LedgerError, MonitorInfo};
use cowslip_model::{
    ByteSize, CpuTemplate, DiskChain, DiskLayer, DiskLimits, NetworkLimits, PublishedPort,
    SandboxId,
};
use tokio::io::{AsyncRead, AsyncWrite};

pub use cowslip_host::process::{Credentials, ExitStatus};
pub use tokio_util::sync::CancellationToken;

/// Everything a machine is started with.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// Whose machine it is.
    pub sandbox: SandboxId,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory, a multiple of 1 MiB.
    pub memory: ByteSize,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs' file.
    pub initramfs: PathBuf,
    /// Words added to the kernel's command line.
    pub command_line: Vec<String>,
    /// The root disk; none for a machine that only shows that it boots.
    pub disk: Option<DiskChain>,
    /// How fast the disk may be used. A restored machine has its image's limits where the monitor keeps them.
    pub disk_limits: DiskLimits,
    /// What of its processor the guest is shown. A restored machine's is its image's.
    pub cpu_template: Option<CpuTemplate>,
    /// How it is connected; none: not at all. A restored machine has its image's limits where the monitor keeps them.
    pub network: Option<NetworkInterface>,
    /// Remember what the guest writes to its memory, where the monitor can, so that an image may hold only
    /// what changed since the last one.
    pub track_memory: bool,
    /// A directory of the sandbox's own, on the file system that its images are on.
    pub work: PathBuf,
    /// The control groups that the monitor runs in; without any it is in the engine's.
    pub cgroups: Vec<PathBuf>,
    /// Where the guest's console goes.
    pub console_log: PathBuf,
    /// The console log is cut to its newest half when it grows past this many bytes.
    pub console_bound: ByteSize,
    /// The user the monitor runs as; none: the engine's own.
    pub credentials: Option<Credentials>,
    /// Ends the wait for a process that does not begin to listen.
    pub called_off: CancellationToken,
}

impl MachineConfig {
    /// The name of the network namespace that the monitor is in; none: the engine's.
    #[must_use]
    pub fn netns(&self) -> Option<PathBuf> {
        let namespace = self.network.as_ref().and_then(NetworkInterface::namespace);
        namespace.map(Path::to_owned)
    }
}

/// The guest's only interface.
#[derive(Debug, Clone)]
pub struct NetworkInterface {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// How fast it may be used.
    pub limits: NetworkLimits,
    /// Where it leads.
    pub to: NetworkTo,
}

/// Where a guest's interface leads.
#[derive(Debug, Clone)]
pub enum NetworkTo {
    /// To the tap of a network namespace, which the monitor is in.
    Namespace(NetnsSpec),
    /// Through the monitor's own process.
    User {
        /// The guest's address.
        guest: Ipv4Addr,
        /// Ports of the host that lead to it.
        publish: Vec<PublishedPort>,
    },
}

impl NetworkInterface {
    /// The hardware address in words.
    #[must_use]
    pub fn mac_text(&self) -> String {
        let bytes: Vec<String> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(":")
    }

    /// The name of the namespace that the monitor is in.
    #[must_use]
    pub fn namespace(&self) -> Option<&Path> {
        match &self.to {
            NetworkTo::Namespace(spec) => Some(&spec.path),
            NetworkTo::User { .. } => None,
        }
    }
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

/// What [`Machine::save`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// Bytes of memory and device state.
    pub bytes: u64,
    /// Whether it holds only what changed since the image that it was to stand on.
    pub changes_only: bool,
}

/// A byte stream to the guest's agent.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// How to speak to the agent.
pub enum AgentChannel {
    /// A bare byte stream without connections (virtio-serial): needs the link protocol.
    Serial(Box<dyn ByteStream>),
    /// A true connection (vsock).
    Connection(Box<dyn ByteStream>),
}

/// A monitor operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The monitor program is not there or is unusable.
    #[error("{program} cannot be used: {why}")]
    Unusable {
        /// The program.
        program: String,
        /// Why, and what to do.
        why: String,
    },
    /// The monitor refused an operation.
    #[error("{operation} of sandbox {sandbox}: the monitor says: {message}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Of which machine.
        sandbox: SandboxId,
        /// Its answer.
        message: String,
    },
    /// The monitor's process ended.
    #[error("{operation} of sandbox {sandbox}: the machine ended{}", detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
    Ended {
        /// What was being done.
        operation: &'static str,
        /// Of which machine.
        sandbox: SandboxId,
        /// The monitor's last words, where it left any.
        detail: Option<String>,
    },
    /// The control channel broke while the monitor's process lives on.
    #[error(
        "{operation} of sandbox {sandbox}: the channel to its monitor broke: {why}; stop the sandbox and start it again"
    )]
    ChannelLost {
        /// What was being done.
        operation: &'static str,
        /// Of which machine.
        sandbox: SandboxId,
        /// How it broke.
        why: String,
    },
    /// The monitor did not answer in time.
    #[error("{operation} of sandbox {sandbox}: no answer from the monitor within {seconds} s")]
    TimedOut {
        /// What was being done.
        operation: &'static str,
        /// Of which machine.
        sandbox: SandboxId,
        /// The bound.
        seconds: u64,
    },
    /// The start was called off while its process did not listen yet.
    #[error("start of sandbox {0}: it was called off")]
    CalledOff(SandboxId),
    /// An image cannot be restored by this monitor (versions, accelerator, machine differ).
    #[error("this image was saved by {saved}, this host runs {present}: {why}")]
    Incompatible {
        /// What saved it.
        saved: String,
        /// What is here.
        present: String,
        /// What does not fit.
        why: String,
    },
    /// A file could not be opened or written.
    #[error("{operation} \"{path}\": {source}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The host layer failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Runs work that blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VmmError> + Send + 'static,
) -> Result<T, VmmError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(VmmError::Unusable {
            program: "this engine".to_owned(),
            why: format!("its work was broken off: {error}"),
        }),
    }
}

/// A kind of monitor.
#[async_trait]
pub trait Vmm: Send + Sync + 'static {
    /// What it is; recorded with every image it saves.
    fn info(&self) -> MonitorInfo;

    /// Finds out what is only known when a machine is about to be started; from then on [`Vmm::info`]
    /// and [`Vmm::restores`] speak of what will be used.
    ///
    /// # Errors
    /// When it cannot be found out.
    async fn settle(&self, _site: &Site, _config: &MachineConfig) -> Result<(), VmmError> {
        Ok(())
    }

    /// Whether it boots a kernel of the format of this file.
    ///
    /// # Errors
    /// [`VmmError::Unusable`], naming the file and what would boot it.
    fn boots(&self, _kernel: &Path) -> Result<(), VmmError> {
        Ok(())
    }

    /// Whether an image saved by `saved` can be restored here.
    ///
    /// # Errors
    /// [`VmmError::Incompatible`], naming both.
    fn restores(&self, saved: &MonitorInfo) -> Result<(), VmmError>;

    /// Starts a machine from its kernel. The machine's runtime directory exists.
    ///
    /// # Errors
    /// When it does not start; what was acquired stays in the ledger for the caller to unwind.
    async fn boot(&self, site: &Site, config: &MachineConfig)
    -> Result<Arc<dyn Machine>, VmmError>;

    /// Starts a machine from an image; its vCPUs stand still until [`Machine::resume`]. One image may
    /// be restored many times at once; it is only read.
    ///
    /// # Errors
    /// As for [`Vmm::boot`].
    async fn restore(
        &self,
        site: &Site,
        config: &MachineConfig,
        image: &Path,
    ) -> Result<Arc<dyn Machine>, VmmError>;

    /// Puts together the new file `whole` from an image that holds only what changed and those it stands on,
    /// the newest first, the last of them whole. [`Vmm::restore`] takes whole images only.
    ///
    /// # Errors
    /// When they do not belong together, or one cannot be read or written; there is no new file then.
    async fn complete(
        &self,
        image: &Path,
        stands_on: &[PathBuf],
        whole: &Path,
    ) -> Result<(), VmmError>;

    /// Connects to a machine that an earlier engine started; its handles are in the ledger.
    ///
    /// # Errors
    /// When it does not answer.
    async fn attach(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError>;
}

/// One running machine. Dropping it leaves the machine running.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Stops the vCPUs; in-flight disk writes are completed. Being paused already is fine.
    ///
    /// # Errors
    /// When the monitor refuses or is gone; so for every method.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Lets the vCPUs run. Running already is fine.
    async fn resume(&self) -> Result<(), VmmError>;

    /// What it is doing.
    async fn state(&self) -> Result<RunState, VmmError>;

    /// Writes memory and device state to the new file `image`, while paused; the machine stays
    /// paused and can be resumed. However long it takes, there is no time limit as long as it makes
    /// progress (R40).
    ///
    /// `base` is the image that this machine was last restored from or saved to, where every save since then
    /// is known to have come about: only what changed since then need be written.
    async fn save(&self, image: &Path, base: Option<&Path>) -> Result<Saved, VmmError>;

    /// Whether it remembers what the guest writes to its memory.
    fn tracks_memory(&self) -> bool;

    /// While paused: from now on the guest writes to `next`, an empty overlay over the present top,
    /// which is flushed to its file and only read from then on. All or nothing.
    async fn change_disk(&self, next: &DiskLayer) -> Result<(), VmmError>;

    /// The file that the guest's writes go to now.
    async fn disk_top(&self) -> Result<PathBuf, VmmError>;

    /// Opens the channel to the agent. A new call replaces the previous channel.
    async fn agent(&self) -> Result<AgentChannel, VmmError>;

    /// Resolves when the machine has ended, with its last words; none where it left none or its guest
    /// powered off by itself.
    async fn ended(&self) -> Option<String>;
}
