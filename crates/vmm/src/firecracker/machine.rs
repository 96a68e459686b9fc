//! One running Firecracker.
//!
//! ```text
//!   (process) ─ boot ─► running ◄──pause/resume──► paused ── save ─► paused
//!       └────── load ─────────────────────────────► paused
//! ```
//!
//! A saved machine goes on by [`Machine::resume`], whatever became of the image.

use std::fs::OpenOptions;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cowslip_host::process::{Credentials, ProcessIdentity, ProcessSpec};
use cowslip_model::{CpuTemplate, DiskLayer, Durability, SandboxId};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api::{
    Api, ApiError, Balloon, BootSource, CacheType, Drive, Entropy, InstanceState,
    MachineConfiguration, NetworkDevice, SnapshotCreate, SnapshotKind, SnapshotLoad, Vsock,
};
use super::devices::{network_device, rate_limiter};
use super::farewell::{Farewell, Listener};
use super::image::Content;
use super::launch::failed;
use super::paths::{self, Exchange, Paths, seen};
use super::vsock::{self, Vsock as Socket};
use super::{ending, image, jail};
use crate::console::{self, BoundedLog};
use crate::ending::Ending;
use crate::{AgentChannel, Machine, MachineConfig, RunState, Saved, VmmError, blocking, words};

/// How long a process may take until it listens, in seconds. It takes some 10 ms; this only ends a
/// start that would hang for ever.
const START_BOUND_SECONDS: u64 = 60;
/// How long what a process printed may take to arrive after its end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Lines of it that an error shows.
const LAST_LINES: usize = 4;
/// Port on which the agent listens in the guest (`cowslip_proto::limits::VSOCK_PORT`).
const AGENT_PORT: u32 = 10_320;
/// The guest's vsock address; the least there is, since no two machines share a socket.
const GUEST_CID: u32 = 3;
const DISK: &str = "root";
/// Words of every guest's command line: speak on the serial console, and let a panic or a power-off end
/// the machine, for which it has only the reset of the keyboard controller (`reboot=k`).
const COMMAND_LINE: &[&str] = &[
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "reboot=k",
    "cowslip.off=reset",
    "8250.nr_uarts=1",
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
];

/// A connection to one Firecracker process. Dropping it leaves the process running.
pub(super) struct FirecrackerMachine {
    sandbox: SandboxId,
    paths: Paths,
    /// Where it saves to, in a jail.
    exchange: Option<Exchange>,
    /// Who reads the device state of an image: the user of its jail.
    user: Option<Credentials>,
    ending: Ending,
    api: Api,
    disk: Option<(PathBuf, Durability)>,
    /// Whether it remembers what the guest writes to its memory.
    tracks_memory: bool,
    /// The present agent channel, to end it when the next is opened.
    agent: Mutex<Option<OwnedFd>>,
    /// Held by who connects to the agent.
    connecting: tokio::sync::Mutex<()>,
    console: JoinHandle<()>,
    console_log: PathBuf,
    /// Bytes that were in it before.
    console_before: u64,
    /// Closes when all that the process printed is in the console's log.
    printed: watch::Receiver<()>,
    /// What its guest's kernel said at the end.
    farewell: watch::Receiver<Option<Farewell>>,
}

impl Drop for FirecrackerMachine {
    fn drop(&mut self) {
        // The next engine, or the next machine object, reads the console on.
        self.console.abort();
    }
}

impl FirecrackerMachine {
    /// Watches the process of `config`'s machine and reads its console.
    pub(super) fn connect(
        paths: Paths,
        config: &MachineConfig,
        process: ProcessSpec,
        identity: ProcessIdentity,
    ) -> Result<Self, VmmError> {
        let log = BoundedLog::open(&config.console_log, config.console_bound.bytes())
            .map_err(failed("open", &config.console_log))?;
        let console_before = log.length();
        let (mut listener, farewell) = Listener::new();
        let console = pipe::OpenOptions::new()
            .open_receiver(&paths.console)
            .map_err(failed("open", &paths.console))?;
        let jailed = process.root.is_some();
        let (printing, printed) = watch::channel(());
        let ending = ending::watch(config.sandbox, process, identity, paths.log.clone());
        Ok(Self {
            exchange: jailed.then(|| Exchange::new(&config.work)),
            user: config.credentials.clone().filter(|_| jailed),
            sandbox: config.sandbox,
            ending,
            api: Api::new(paths.api.clone()),
            disk: config
                .disk
                .as_ref()
                .map(|chain| (chain.top.path.clone(), chain.durability)),
            tracks_memory: config.track_memory,
            agent: Mutex::new(None),
            connecting: tokio::sync::Mutex::default(),
            console: tokio::spawn(async move {
                console::drain(console, log, |bytes| listener.listen(bytes)).await;
                drop(printing);
            }),
            console_log: config.console_log.clone(),
            console_before,
            printed,
            farewell,
            paths,
        })
    }

    /// Waits until a process that was just started answers, or this is called off. It listens a moment before it has
    /// its seccomp filters, and answers only with them.
    pub(super) async fn wait(&self, called_off: &CancellationToken) -> Result<(), VmmError> {
        const OPERATION: &str = "start";
        let sandbox = self.sandbox;
        let answer = async { Api::wait(self.paths.api.clone()).await?.instance().await };
        tokio::select! {
            biased;
            detail = self.ending.ended() => {
                let detail = self.with_what_it_printed(detail).await;
                Err(VmmError::Ended { operation: OPERATION, sandbox, detail })
            }
            answered = answer => match answered {
                Ok(_) => Ok(()),
                Err(error) => Err(self.explain(OPERATION, error).await),
            },
            () = called_off.cancelled() => Err(VmmError::CalledOff(sandbox)),
            () = tokio::time::sleep(Duration::from_secs(START_BOUND_SECONDS)) => Err(VmmError::TimedOut {
                operation: OPERATION,
                sandbox,
                seconds: START_BOUND_SECONDS,
            }),
        }
    }

    /// Waits until what an ended process printed has arrived.
    async fn all_printed(&self) {
        let mut printed = self.printed.clone();
        // Its end is the channel's; a process of its own that it left could keep the pipe open.
        let all = async { while printed.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(LAST_WORDS, all).await;
    }

    /// Resolves when the guest has powered itself off.
    async fn is_off(&self) {
        let mut farewell = self.farewell.clone();
        let off = |heard: &Option<Farewell>| matches!(heard, Some(Farewell::Off));
        if farewell.wait_for(off).await.is_err() {
            // The console was closed: the process ends.
            std::future::pending::<()>().await;
        }
    }

    /// Adds what a process printed that ended before it had a machine: the jailer says there what it
    /// could not do.
    async fn with_what_it_printed(&self, detail: Option<String>) -> Option<String> {
        self.all_printed().await;
        let lines = words::last_lines(&self.console_log, self.console_before);
        let newest = &lines[lines.len().saturating_sub(LAST_LINES)..];
        let all: Vec<String> = detail.into_iter().chain(newest.iter().cloned()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Makes the machine and lets it boot.
    pub(super) async fn boot(&self, config: &MachineConfig) -> Result<(), VmmError> {
        const OPERATION: &str = "boot";
        if self.exchange.is_none() {
            for path in [&config.kernel, &config.initramfs] {
                self.require_seen(OPERATION, path)?;
            }
        }
        let network = config.network.as_ref().map(network_device).transpose()?;
        match self.configure(config, network.as_ref()).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(OPERATION, error).await),
        }
    }

    async fn configure(
        &self,
        config: &MachineConfig,
        network: Option<&NetworkDevice>,
    ) -> Result<(), ApiError> {
        let machine = MachineConfiguration {
            vcpu_count: config.cpus,
            mem_size_mib: config.memory.bytes() >> 20,
            track_dirty_pages: config.track_memory,
            cpu_template: match &config.cpu_template {
                Some(CpuTemplate::Named(named)) => Some(*named),
                Some(CpuTemplate::Custom(_)) | None => None,
            },
        };
        self.api.machine(&machine).await?;
        if let Some(CpuTemplate::Custom(template)) = &config.cpu_template {
            self.api.cpu(template).await?;
        }
        let (kernel, initramfs) = match &self.exchange {
            Some(_) => (seen::kernel(), seen::initramfs()),
            None => (config.kernel.clone(), config.initramfs.clone()),
        };
        let source = BootSource {
            kernel_image_path: kernel,
            initrd_path: Some(initramfs),
            boot_args: command_line(&config.command_line),
        };
        self.api.boot_source(&source).await?;
        if let Some((_, durability)) = &self.disk {
            let drive = Drive {
                drive_id: DISK.to_owned(),
                path_on_host: seen::disk(),
                is_root_device: false,
                is_read_only: false,
                cache_type: match durability {
                    Durability::Published => CacheType::Unsafe,
                    Durability::Flush => CacheType::Writeback,
                },
                rate_limiter: rate_limiter(&config.disk_limits),
            };
            self.api.drive(&drive).await?;
        }
        if let Some(network) = network {
            self.api.network(network).await?;
        }
        let vsock = Vsock {
            guest_cid: GUEST_CID,
            uds_path: seen::vsock(),
        };
        self.api.vsock(&vsock).await?;
        self.api.entropy(&Entropy {}).await?;
        let balloon = Balloon {
            amount_mib: 0,
            deflate_on_oom: true,
            free_page_reporting: false,
        };
        self.api.balloon(&balloon).await?;
        self.api.start().await
    }

    /// Makes the machine from `image`; its vCPUs stand still.
    pub(super) async fn load(&self, image: &Path, track_memory: bool) -> Result<(), VmmError> {
        const OPERATION: &str = "restore";
        let memory = if self.exchange.is_some() {
            seen::image()
        } else {
            self.require_seen(OPERATION, image)?;
            image.to_owned()
        };
        let (from, to) = (image.to_owned(), self.paths.state.clone());
        let user = self.user.as_ref().map(|user| (user.uid, user.gid));
        blocking(move || {
            let extracted = image::extract(&from, &to).and_then(|state| match user {
                Some((uid, gid)) => fchown(&state, Some(uid), Some(gid)),
                None => Ok(()),
            });
            extracted.map_err(|source| VmmError::File {
                operation: "read the device state of the image",
                path: from,
                source,
            })
        })
        .await?;
        let load = SnapshotLoad {
            state: seen::state(),
            memory,
            track_dirty_pages: track_memory,
            // The path that the image names is this machine's own too.
            vsock: None,
        };
        let loaded = self.api.load_snapshot(&load).await;
        self.remove_state();
        match loaded {
            Ok(()) => Ok(()),
            // Firecracker ends over an image that it cannot load.
            Err(ApiError::Closed { request, why }) => {
                let Some(words) = self.ending.ending().await else {
                    let error = ApiError::Closed { request, why };
                    return Err(self.explain(OPERATION, error).await);
                };
                let words = words.unwrap_or_else(|| "the image is not whole".to_owned());
                Err(self.refused(OPERATION, format!("\"{}\": {words}", image.display())))
            }
            Err(error) => Err(self.explain(OPERATION, error).await),
        }
    }

    /// Looks at a machine that another engine started. Without tracking Firecracker would take what is in
    /// memory for what was written, and leave out what was swapped out: so it is asked.
    pub(super) async fn take_over(&mut self) -> Result<(), VmmError> {
        const OPERATION: &str = "attach";
        self.run_state(OPERATION).await?;
        match self.api.configuration().await {
            Ok(configuration) => {
                self.tracks_memory = configuration.machine.track_dirty_pages;
                Ok(())
            }
            Err(error) => Err(self.explain(OPERATION, error).await),
        }
    }

    /// What is to be written.
    async fn content(&self, image: &Path, base: Option<&Path>) -> Result<Content, VmmError> {
        if base.is_none() || !self.tracks_memory {
            return Ok(Content::Whole);
        }
        let directory = image.parent().unwrap_or(image).to_owned();
        let exact = blocking(move || Ok(image::tells_holes(&directory))).await?;
        Ok(if exact {
            Content::Changes
        } else {
            Content::Whole
        })
    }

    /// Has an image written by Firecracker and put together.
    async fn write(&self, image: &Path, content: Content) -> Result<u64, VmmError> {
        const OPERATION: &str = "save";
        let create = |memory, state| SnapshotCreate {
            snapshot_type: match content {
                Content::Whole => SnapshotKind::Full,
                Content::Changes => SnapshotKind::Diff,
            },
            snapshot_path: state,
            mem_file_path: memory,
        };
        let (create, state) = match &self.exchange {
            Some(exchange) => {
                let create = create(seen::exchanged_memory(), seen::exchanged_state());
                (create, exchange.state.clone())
            }
            None => {
                self.require_seen(OPERATION, image)?;
                let made = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(image);
                made.map_err(failed("create the image", image))?;
                (
                    create(image.to_owned(), seen::state()),
                    self.paths.state.clone(),
                )
            }
        };
        if let Err(error) = self.api.create_snapshot(&create).await {
            return Err(self.explain(OPERATION, error).await);
        }
        let (exchange, image) = (self.exchange.clone(), image.to_owned());
        blocking(move || {
            let state = jail::open(&state)?;
            let mut file = match &exchange {
                Some(exchange) => jail::take_out(exchange, &image)?,
                None => OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&image)
                    .map_err(failed("open the image", &image))?,
            };
            let bytes = image::seal(&mut file, &state, content)
                .map_err(failed("put the device state into the image", &image))?;
            drop(file);
            if exchange.is_some() {
                jail::require_settled(&image)?;
            }
            Ok(bytes)
        })
        .await
    }

    /// Ends the present connection to the agent; `next` is the present one from now on.
    fn hang_up(&self, next: Option<OwnedFd>) {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = std::mem::replace(&mut *agent, next) {
            // It may have ended by itself.
            let _ = StdUnixStream::from(previous).shutdown(Shutdown::Both);
        }
    }

    /// What a save leaves beside the image, or an earlier one left, is of no use to anyone.
    fn clear(&self) {
        self.remove_state();
        if let Some(exchange) = &self.exchange {
            remove(&exchange.memory);
            remove(&exchange.state);
        }
    }

    /// Device state is of no use to anyone outside its image.
    fn remove_state(&self) {
        remove(&self.paths.state);
    }

    async fn run_state(&self, operation: &'static str) -> Result<RunState, VmmError> {
        match self.api.instance().await {
            Ok(instance) => match instance.state {
                InstanceState::Running => Ok(RunState::Running),
                InstanceState::Paused => Ok(RunState::Paused),
                InstanceState::NotStarted => {
                    Err(self.refused(operation, "it has no machine yet".to_owned()))
                }
            },
            Err(error) => Err(self.explain(operation, error).await),
        }
    }

    /// Firecracker opens files by the path that they have here, which it sees but below one directory.
    fn require_seen(&self, operation: &'static str, path: &Path) -> Result<(), VmmError> {
        if paths::is_seen(path) {
            return Ok(());
        }
        let path = path.display();
        Err(self.refused(
            operation,
            format!("\"{path}\" lies where it sees nothing: keep the state directory out of /run"),
        ))
    }

    fn refused(&self, operation: &'static str, message: String) -> VmmError {
        VmmError::Refused {
            operation,
            sandbox: self.sandbox,
            message,
        }
    }

    async fn explain(&self, operation: &'static str, error: ApiError) -> VmmError {
        ending::explain(&self.ending, operation, error).await
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a part of an image could not be removed");
        }
        _ => {}
    }
}

/// The guest kernel's command line; later words win, so the caller's come last.
///
/// Firecracker adds its devices behind them, which the kernel finds by ACPI as well. Finding each twice costs
/// it time and lines on the serial console: what stands behind `--` it leaves to its first process.
fn command_line(words: &[String]) -> String {
    let own = COMMAND_LINE.iter().copied();
    own.chain(words.iter().map(String::as_str))
        .chain(["--"])
        .collect::<Vec<_>>()
        .join(" ")
}

#[async_trait]
impl Machine for FirecrackerMachine {
    async fn pause(&self) -> Result<(), VmmError> {
        match self.api.pause().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain("pause", error).await),
        }
    }

    async fn resume(&self) -> Result<(), VmmError> {
        match self.api.resume().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain("resume", error).await),
        }
    }

    async fn state(&self) -> Result<RunState, VmmError> {
        self.run_state("look at").await
    }

    async fn save(&self, image: &Path, base: Option<&Path>) -> Result<Saved, VmmError> {
        const OPERATION: &str = "save";
        if self.run_state(OPERATION).await? == RunState::Running {
            return Err(self.refused(OPERATION, "the machine runs: pause it first".to_owned()));
        }
        if image.symlink_metadata().is_ok() {
            let exists = std::io::ErrorKind::AlreadyExists.into();
            return Err(failed("create the image", image)(exists));
        }
        let content = self.content(image, base).await?;
        self.clear();
        let written = self.write(image, content).await;
        // The guest is told to drop its connections, also where the save fails after that. Until it runs
        // and answers, the present one would look as if it stood.
        self.hang_up(None);
        self.clear();
        if written.is_err() {
            // Part of an image is of no use to anyone, and the disk may be full.
            remove(image);
        }
        Ok(Saved {
            bytes: written?,
            changes_only: content == Content::Changes,
        })
    }

    fn tracks_memory(&self) -> bool {
        self.tracks_memory
    }

    async fn change_disk(&self, _next: &DiskLayer) -> Result<(), VmmError> {
        let message = "it reads no layers: choose the backend \"dm\"".to_owned();
        Err(self.refused("change the disk", message))
    }

    async fn disk_top(&self) -> Result<PathBuf, VmmError> {
        match &self.disk {
            Some((path, _)) => Ok(path.clone()),
            None => Err(self.refused("look at the disk", "the machine has no disk".to_owned())),
        }
    }

    async fn agent(&self) -> Result<AgentChannel, VmmError> {
        let failed = |source| VmmError::File {
            operation: "connect to the agent's port by",
            path: self.paths.vsock.clone(),
            source,
        };
        // One at a time: they would take each other's bell.
        let _connecting = self.connecting.lock().await;
        let vsock = Socket {
            socket: &self.paths.vsock,
            own: self.paths.own(),
            user: self.user.as_ref(),
        };
        let stream = vsock::connect(&vsock, AGENT_PORT).await.map_err(failed)?;
        let ours = stream.as_fd().try_clone_to_owned().map_err(failed)?;
        self.hang_up(Some(ours));
        Ok(AgentChannel::Connection(Box::new(stream)))
    }

    async fn ended(&self) -> Option<String> {
        let words = tokio::select! {
            biased;
            words = self.ending.ended() => words,
            () = self.is_off() => return None,
        };
        self.all_printed().await;
        match (words, &*self.farewell.borrow()) {
            (None, Some(Farewell::Panic(why))) => Some(format!("its kernel panicked: {why}")),
            (words, _) => words,
        }
    }
}
