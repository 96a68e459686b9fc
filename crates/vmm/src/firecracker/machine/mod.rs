//! One running Firecracker.
//!
//! ```text
//!   (process) ─ boot ─► running ◄──pause/resume──► paused ── save ─► paused
//!       └────── load ─────────────────────────────► paused
//! ```
//!
//! A saved machine goes on by [`Machine::resume`], whatever became of the image.

mod boot;
mod snapshot;

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cowslip_host::process::{Credentials, ProcessIdentity, ProcessSpec};
use cowslip_model::{DiskLayer, Durability, SandboxId};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api::{Api, ApiError, InstanceState};
use super::ending;
use super::farewell::{Farewell, Listener};
use super::launch::failed;
use super::paths::{self, Exchange, Paths};
use super::vsock::{self, Vsock as Socket};
use crate::console::{self, BoundedLog};
use crate::ending::Ending;
use crate::{AgentChannel, Machine, MachineConfig, RunState, Saved, VmmError, words};

/// How long a process may take until it listens, in seconds. It takes some 10 ms; this only ends a
/// start that would hang for ever.
const START_BOUND_SECONDS: u64 = 60;
/// How long what a process printed may take to arrive after its end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Lines of it that an error shows.
const LAST_LINES: usize = 4;
/// Port on which the agent listens in the guest (`cowslip_proto::limits::VSOCK_PORT`).
const AGENT_PORT: u32 = 10_320;

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

    /// Ends the present connection to the agent; `next` is the present one from now on.
    fn hang_up(&self, next: Option<OwnedFd>) {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = std::mem::replace(&mut *agent, next) {
            // It may have ended by itself.
            let _ = StdUnixStream::from(previous).shutdown(Shutdown::Both);
        }
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
        self.save_to(image, base).await
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
