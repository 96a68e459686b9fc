//! One running QEMU.
//!
//! ```text
//!          stop                    migrate to a file
//!   running ───► paused ─────────────────────────────► saved (QEMU: postmigrate)
//!      ▲           │ ▲ blockdev-snapshot                  │
//!      └── cont ───┴─┘                                    │
//!      └────────────────── cont ◄─────────────────────────┘
//! ```
//!
//! A saved machine's disk is closed for writing: it can only go on. Whatever fails here, `cont` works
//! afterwards; that the vCPUs do go on is the engine's part.

use std::fs::OpenOptions;
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use cowslip_host::process::{ProcessIdentity, ProcessSpec};
use cowslip_model::{DiskLayer, DiskLimits, Durability, SandboxId};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::disk::{self, DiskError};
use super::ending;
use super::launch::Paths;
use super::migration::{self, MigrationError, STALL_BOUND_SECONDS};
use super::qmp::{Qmp, QmpError};
use crate::console::{self, BoundedLog};
use crate::ending::Ending;
use crate::{AgentChannel, Machine, MachineConfig, RunState, Saved, VmmError};

/// What QEMU calls a machine whose image was written.
const SAVED: &str = "postmigrate";

/// A connection to one QEMU process. Dropping it leaves the process running.
pub(super) struct QemuMachine {
    sandbox: SandboxId,
    paths: Paths,
    ending: Ending,
    qmp: Qmp,
    /// The file that the machine was started on, or one beside it, and what its flushes are worth; none
    /// for one without a disk.
    disk: Option<(PathBuf, Durability)>,
    disk_limits: DiskLimits,
    /// The present agent channel, to end it when the next is opened.
    agent: Mutex<Option<StdUnixStream>>,
    console: JoinHandle<()>,
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        // The next engine, or the next machine object, reads the console on.
        self.console.abort();
    }
}

impl QemuMachine {
    /// Connects to the machine of `config`, whose process runs already.
    pub(super) async fn connect(
        paths: Paths,
        config: &MachineConfig,
        process: ProcessSpec,
        identity: ProcessIdentity,
    ) -> Result<Self, VmmError> {
        let log = BoundedLog::open(&config.console_log, config.console_bound.bytes()).map_err(
            |source| VmmError::File {
                operation: "open",
                path: config.console_log.clone(),
                source,
            },
        )?;
        let (ending, farewell) = ending::watch(config.sandbox, process, identity, paths.clone());
        let stream = match UnixStream::connect(&paths.console).await {
            Ok(stream) => stream,
            Err(error) => {
                drop(farewell);
                let error = QmpError::Closed(error.to_string());
                return Err(ending::explain(&ending, "connect to the console", error).await);
            }
        };
        let console = tokio::spawn(console::drain(stream, log, |_| ()));
        let qmp = match Qmp::connect(&paths.control).await {
            Ok(qmp) => qmp,
            Err(error) => {
                console.abort();
                drop(farewell);
                return Err(ending::explain(&ending, "connect to the monitor", error).await);
            }
        };
        tokio::spawn(ending::listen(qmp.subscribe(), farewell));
        Ok(Self {
            sandbox: config.sandbox,
            paths,
            ending,
            qmp,
            disk: config
                .disk
                .as_ref()
                .map(|chain| (chain.top.path.clone(), chain.durability)),
            disk_limits: config.disk_limits,
            agent: Mutex::new(None),
            console,
        })
    }

    pub(super) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Sets what every machine is set to after its start.
    pub(super) async fn prepare(&self) -> Result<(), VmmError> {
        let prepare = async {
            migration::prepare(&self.qmp).await?;
            if self.disk.is_some() && !self.disk_limits.is_none() {
                disk::limit(&self.qmp, &self.disk_limits).await?;
            }
            Ok(())
        };
        match prepare.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain("prepare", error).await),
        }
    }

    /// Reads memory and device state from `image`; the vCPUs stand still afterwards.
    pub(super) async fn load(&self, image: &Path) -> Result<(), VmmError> {
        let file = OpenOptions::new()
            .read(true)
            .open(image)
            .map_err(|source| VmmError::File {
                operation: "open the image",
                path: image.to_owned(),
                source,
            })?;
        let Err(error) = migration::load(&self.qmp, &file).await else {
            return Ok(());
        };
        // QEMU ends over an image that it cannot load; why is in its last words.
        if matches!(
            &error,
            MigrationError::Failed(_) | MigrationError::Qmp(QmpError::Closed(_))
        ) && let Some(end) = self.ending.ending().await
        {
            let words = end.unwrap_or_else(|| "the image is not whole".to_owned());
            return Err(self.refused("restore", format!("\"{}\": {words}", image.display())));
        }
        Err(self.explain_migration("restore", error).await)
    }

    async fn status(&self, operation: &'static str) -> Result<String, VmmError> {
        let answer = match self.qmp.execute("query-status", json!({})).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.explain(operation, error).await),
        };
        answer["status"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| self.refused(operation, format!("it tells no status: {answer}")))
    }

    /// Refuses what needs a machine that stands still with its disk open.
    async fn require_paused(&self, operation: &'static str) -> Result<(), VmmError> {
        match self.status(operation).await?.as_str() {
            "running" => {
                Err(self.refused(operation, "the machine runs: pause it first".to_owned()))
            }
            SAVED => Err(self.refused(
                operation,
                "its image was just saved: resume it first".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn refused(&self, operation: &'static str, message: String) -> VmmError {
        VmmError::Refused {
            operation,
            sandbox: self.sandbox,
            message,
        }
    }

    async fn explain(&self, operation: &'static str, error: QmpError) -> VmmError {
        ending::explain(&self.ending, operation, error).await
    }

    async fn explain_migration(&self, operation: &'static str, error: MigrationError) -> VmmError {
        match error {
            MigrationError::Qmp(error) => self.explain(operation, error).await,
            MigrationError::Stalled => VmmError::TimedOut {
                operation,
                sandbox: self.sandbox,
                seconds: STALL_BOUND_SECONDS,
            },
            other => self.refused(operation, other.to_string()),
        }
    }

    async fn explain_disk(&self, operation: &'static str, error: DiskError) -> VmmError {
        match error {
            DiskError::Qmp(error) => self.explain(operation, error).await,
            DiskError::File(error) => error,
            DiskError::Unfit(message) => self.refused(operation, message),
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    async fn pause(&self) -> Result<(), VmmError> {
        const OPERATION: &str = "pause";
        if self.status(OPERATION).await? != "running" {
            return Ok(());
        }
        match self.qmp.execute("stop", json!({})).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(OPERATION, error).await),
        }
    }

    async fn resume(&self) -> Result<(), VmmError> {
        const OPERATION: &str = "resume";
        if self.status(OPERATION).await? == "running" {
            return Ok(());
        }
        // A save may be under way that nobody waits for: its caller, or the engine before this one,
        // gave up.
        if let Err(error) = migration::abandon(&self.qmp).await {
            return Err(self.explain_migration(OPERATION, error).await);
        }
        if let Err(error) = self.qmp.execute("cont", json!({})).await {
            return Err(self.explain(OPERATION, error).await);
        }
        // The guest runs; that a descriptor stays open longer than it should is no failure of that.
        if self.disk.is_some()
            && let Err(error) = disk::retire(&self.qmp).await
        {
            tracing::warn!(sandbox = %self.sandbox, %error, "a frozen layer stays open in its monitor");
        }
        Ok(())
    }

    async fn state(&self) -> Result<RunState, VmmError> {
        Ok(match self.status("look at").await?.as_str() {
            "running" => RunState::Running,
            _ => RunState::Paused,
        })
    }

    async fn save(&self, image: &Path, _base: Option<&Path>) -> Result<Saved, VmmError> {
        const OPERATION: &str = "save";
        self.require_paused(OPERATION).await?;
        let failed = |operation| {
            move |source| VmmError::File {
                operation,
                path: image.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(image)
            .map_err(failed("create the image"))?;
        if let Err(error) = migration::save(&self.qmp, &file).await {
            // Part of an image is of no use to anyone, and the disk may be full.
            if let Err(error) = std::fs::remove_file(image) {
                tracing::warn!(path = %image.display(), %error, "a broken image could not be removed");
            }
            return Err(self.explain_migration(OPERATION, error).await);
        }
        Ok(Saved {
            bytes: file.metadata().map_err(failed("look at the image"))?.len(),
            changes_only: false,
        })
    }

    /// A migration to a file writes all there is.
    fn tracks_memory(&self) -> bool {
        false
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), VmmError> {
        const OPERATION: &str = "change the disk";
        self.require_paused(OPERATION).await?;
        let durability = self
            .disk
            .as_ref()
            .map_or_else(Durability::default, |(_, durability)| *durability);
        match disk::change(&self.qmp, next, durability).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain_disk(OPERATION, error).await),
        }
    }

    async fn disk_top(&self) -> Result<PathBuf, VmmError> {
        const OPERATION: &str = "look at the disk";
        let Some((started, _)) = &self.disk else {
            return Err(self.refused(OPERATION, "the machine has no disk".to_owned()));
        };
        match disk::top(&self.qmp, started).await {
            Ok(path) => Ok(path),
            Err(error) => Err(self.explain_disk(OPERATION, error).await),
        }
    }

    async fn agent(&self) -> Result<AgentChannel, VmmError> {
        let failed = |source| VmmError::File {
            operation: "connect to the agent's port",
            path: self.paths.agent.clone(),
            source,
        };
        // Connecting to a listening unix socket does not wait. The monitor serves one connection at a
        // time and takes the next when the present one has ended.
        let stream = StdUnixStream::connect(&self.paths.agent).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let ours = stream.try_clone().map_err(failed)?;
        let stream = UnixStream::from_std(stream).map_err(failed)?;
        let previous = self
            .agent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(ours);
        if let Some(previous) = previous {
            // It may have ended by itself.
            let _ = previous.shutdown(Shutdown::Both);
        }
        Ok(AgentChannel::Serial(Box::new(stream)))
    }

    async fn ended(&self) -> Option<String> {
        self.ending.ended().await
    }
}
