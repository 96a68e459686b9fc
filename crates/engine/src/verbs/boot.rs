//! Starting a machine for a sandbox, from its kernel or from an image: shared by `start`, `fork` and
//! `resume`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_host::{Cgroup, CgroupSpec, Directory, DirectorySpec, kvm, process};
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{
    CheckpointRecord, Held, LedgerError, MonitorInfo, Owner, Resource, SandboxRecord,
};
use cowslip_model::api::Phase;
use cowslip_model::{DiskChain, HostCpu, LayerId, SandboxId};
use cowslip_proto::AgentClient;
use cowslip_vmm::{Credentials, Machine, MachineConfig, VmmError};
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;
use crate::guest::{BootTimes, FIRST_ANSWER, Guest, GuestError, Restored, Setup};
use crate::live::Live;
use crate::network;
use crate::unwind::unwind;
use crate::verbs::checkpoint::micros;
use crate::verbs::logs::CONSOLE_LOG;
use crate::{Engine, blocking};

/// What a machine starts from.
pub(crate) enum Origin<'a> {
    /// Its kernel.
    Kernel,
    /// An image; the guest is told what changed for it.
    Image {
        image: Image<'a>,
        saved_by: &'a MonitorInfo,
        /// A fork gets an identity of its own; a resumed sandbox keeps its.
        new_identity: bool,
        generation: u64,
    },
}

/// Where an image is.
pub(crate) enum Image<'a> {
    /// In this file, whole.
    File(&'a Path),
    /// In a checkpoint, where it may have to be put together.
    Checkpoint(&'a CheckpointRecord),
}

/// How long the parts of a start took.
#[derive(Debug, Clone, Default)]
pub(crate) struct StartTimes {
    pub(crate) monitor: Duration,
    pub(crate) guest: Duration,
    pub(crate) phases: Vec<Phase>,
}

/// Measures one part after the other.
struct Phases {
    since: Instant,
    phases: Vec<Phase>,
}

impl Phases {
    fn begin() -> Self {
        Self {
            since: Instant::now(),
            phases: Vec::new(),
        }
    }

    /// What was done since the last part was ended.
    fn end(&mut self, name: &str) {
        let now = Instant::now();
        self.phases.push(Phase {
            name: name.to_owned(),
            us: micros(now.duration_since(self.since)),
        });
        self.since = now;
    }
}

/// A machine whose agent has answered.
pub(crate) struct Started {
    pub(crate) live: Arc<Live>,
    pub(crate) boot_times: BootTimes,
    pub(crate) monitor: MonitorInfo,
    pub(crate) times: StartTimes,
    /// The image that its memory is of; none after a boot.
    pub(crate) image: Option<PathBuf>,
}

/// What a guest that is shown a template of a processor needs of the host.
fn behind_a_template(monitor: MonitorInfo) -> MonitorInfo {
    MonitorInfo {
        cpu: monitor.cpu.map(HostCpu::behind_a_template),
        ..monitor
    }
}

/// Random bytes for a guest's pool.
fn entropy() -> Result<Vec<u8>, EngineError> {
    let mut bytes = vec![0; 64];
    getrandom::fill(&mut bytes)
        .map_err(|error| EngineError::Internal(format!("draw random bytes: {error}")))?;
    Ok(bytes)
}

/// A machine id: 32 hexadecimal digits.
fn machine_id() -> Result<String, EngineError> {
    Ok(entropy()?
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// How long a machine whose guest cannot be reached may take to say that it ends.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Memory of a monitor beyond its guest's, in bytes: its own, its emulator's translated code, and what the
/// kernel holds for it. A bound for one that was taken over, not a measure.
const MONITOR_MEMORY: u64 = 1 << 30;
/// Processes and threads of a monitor beyond its vCPUs: QEMU may have 64 for its disk alone.
const MONITOR_TASKS: u64 = 256;
/// Lines of the console that an error shows.
const CONSOLE_LINES: usize = 10;

impl Engine {
    /// Starts the machine of `record` on the volume whose top is `top`. On failure the machine is
    /// unwound, and what could not be released is part of the error.
    pub(crate) async fn start_machine(
        self: &Arc<Self>,
        record: &SandboxRecord,
        top: LayerId,
        from: Origin<'_>,
    ) -> Result<Started, EngineError> {
        let boot = self.boots.begin(record.id);
        let outcome = self.try_start_machine(record, top, from, &boot).await;
        self.boots.end(record.id);
        match outcome {
            Ok(started) => Ok(started),
            Err(EngineError::Vmm(VmmError::CalledOff(_))) => {
                let error = EngineError::CalledOff {
                    name: record.name.clone(),
                };
                Err(error.and_rollback(self.end_machine(record.id).await))
            }
            Err(error) => Err(error.and_rollback(self.end_machine(record.id).await)),
        }
    }

    async fn try_start_machine(
        self: &Arc<Self>,
        record: &SandboxRecord,
        top: LayerId,
        from: Origin<'_>,
        boot: &CancellationToken,
    ) -> Result<Started, EngineError> {
        let begun = Instant::now();
        let mut phases = Phases::begin();
        let kernel = self.site.layout.kernel(record.spec.kernel);
        self.refresh_agent(&kernel).await?;
        let layers = self.site.ledger.read(|tx| tx.chain(top))?;
        let vmm = self.monitor_of(record).await?;
        phases.end("look up");
        self.make_sandbox_directory(record.id).await?;
        let spec = DirectorySpec {
            path: self.site.layout.machine(record.id),
            mode: 0o700,
        };
        self.make_directory(Owner::Machine(record.id), spec).await?;
        let cgroups = self.make_cgroups(record).await?;
        phases.end("directories");
        let network = self.make_network(record).await?;
        phases.end("network");
        let disk = match self.volumes.activate(&self.site, record.id, &layers).await {
            Err(error) if self.may_copy(&error, &layers) => {
                self.copy_disk(record.id, &layers, &error).await?
            }
            other => other?,
        };
        phases.end("disk");
        let config = MachineConfig {
            cgroups,
            network,
            called_off: boot.clone(),
            ..self.machine_config(record, Some(disk))
        };
        let (machine, image) = match &from {
            Origin::Kernel => {
                let machine = vmm.boot(&self.site, &config).await?;
                phases.end("monitor");
                (machine, None)
            }
            Origin::Image {
                image, saved_by, ..
            } => {
                vmm.settle(&self.site, &config).await?;
                vmm.restores(saved_by)?;
                let path = match image {
                    Image::File(path) => path.to_path_buf(),
                    Image::Checkpoint(checkpoint) => {
                        let path = self.whole_image(&vmm, checkpoint).await?;
                        if checkpoint.memory_chain > 0 {
                            phases.end("image");
                        }
                        path
                    }
                };
                let machine = vmm.restore(&self.site, &config, &path).await?;
                phases.end("monitor");
                machine.resume().await?;
                phases.end("resume");
                (machine, Some(path))
            }
        };
        let monitor_up = begun.elapsed();
        // Nothing is being acquired while the guest is waited for: here a boot can be called off.
        let guest = tokio::select! {
            biased;
            () = boot.cancelled() => return Err(EngineError::CalledOff {
                name: record.name.clone(),
            }),
            guest = self.connect_guest(record, &machine, &from) => guest,
        };
        let guest = match guest {
            Ok(guest) => guest,
            Err(error) => return Err(self.explain_boot(record, &machine, error).await),
        };
        phases.end("guest");
        let times = StartTimes {
            monitor: monitor_up,
            guest: begun.elapsed() - monitor_up,
            phases: phases.phases,
        };
        Ok(Started {
            boot_times: guest.boot_times(),
            live: Live::new(machine, Some(guest)),
            monitor: match &record.spec.cpu_template {
                None => vmm.info(),
                Some(_) => behind_a_template(vmm.info()),
            },
            times,
            image,
        })
    }

    /// The control groups of a sandbox's machine, where this host has any for us.
    async fn make_cgroups(&self, record: &SandboxRecord) -> Result<Vec<PathBuf>, EngineError> {
        let resources = &record.spec.resources;
        let mark = process::mark(self.site.ledger.instance(), record.id);
        let owner = Owner::Machine(record.id);
        let mut made = Vec::new();
        for root in self.site.host.cgroup_roots() {
            let spec = CgroupSpec {
                path: root.join(&mark),
                memory: resources.memory.bytes().saturating_add(MONITOR_MEMORY),
                tasks: MONITOR_TASKS + u64::from(resources.cpus),
            };
            made.push(spec.path.clone());
            let slot = self.site.ledger.reserve::<Cgroup>(owner, spec, &[])?;
            let host = Arc::clone(&self.site.host);
            blocking(move || host.make_cgroup(slot).map(Held::settle)).await??;
        }
        Ok(made)
    }

    /// The sandbox's own directory, again where a removal took it and failed after that.
    async fn make_sandbox_directory(&self, id: SandboxId) -> Result<(), EngineError> {
        let owner = Owner::Sandbox(id);
        let rows = self.site.ledger.read(|tx| tx.handles_of(owner))?;
        for row in rows.iter().filter(|row| row.kind == Directory::KIND) {
            let (host, probed) = (Arc::clone(&self.site.host), row.clone());
            if blocking(move || host.probe(&probed)).await?? == Presence::Present {
                return Ok(());
            }
            self.release_row(row.clone()).await?;
        }
        let spec = DirectorySpec {
            path: self.site.layout.sandbox(id),
            mode: 0o700,
        };
        self.make_directory(owner, spec).await
    }

    /// A connection that broke because the machine ended: then its last words and its console's tell why.
    async fn explain_boot(
        &self,
        record: &SandboxRecord,
        machine: &Arc<dyn Machine>,
        error: EngineError,
    ) -> EngineError {
        let Ok(words) = tokio::time::timeout(LAST_WORDS, machine.ended()).await else {
            return error;
        };
        let console = self.site.layout.sandbox(record.id).join(CONSOLE_LOG);
        let host = Arc::clone(&self.site.host);
        let read = blocking(move || {
            let mut bytes = Vec::new();
            if let Ok(Some(mut file)) = host.open(&console) {
                // What could be read is shown.
                let _ = std::io::Read::read_to_end(&mut file, &mut bytes);
            }
            bytes
        });
        let console = read.await.unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
        EngineError::EndedInBoot {
            name: record.name.clone(),
            words: words.unwrap_or_else(|| "the guest powered off".to_owned()),
            console: lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n"),
            source: Box::new(error),
        }
    }

    /// Connects to the agent and tells it what it must know. Only then does a sandbox run.
    async fn connect_guest(
        &self,
        record: &SandboxRecord,
        machine: &Arc<dyn Machine>,
        from: &Origin<'_>,
    ) -> Result<Arc<dyn Guest>, EngineError> {
        let seconds = match from {
            Origin::Kernel => self.config.machine.boot_timeout,
            Origin::Image { .. } => self.config.machine.restore_timeout,
        };
        let within = Duration::from_secs(seconds);
        let mut guest = self.guests.connect(record.id, machine, within).await?;
        match from {
            Origin::Kernel => {
                guest
                    .configure(Setup {
                        hostname: record.name.to_string(),
                        machine_id: machine_id()?,
                        env: record.spec.env.clone().into_iter().collect(),
                        grow_root: true,
                        generation: record.generation,
                        entropy: entropy()?,
                        network: network::of_guest(record.spec.network.mode),
                    })
                    .await?;
            }
            Origin::Image {
                new_identity,
                generation,
                ..
            } => {
                let identity = new_identity.then(machine_id).transpose()?;
                let news = Restored {
                    generation: *generation,
                    hostname: new_identity.then(|| record.name.to_string()),
                    machine_id: identity,
                    entropy: entropy()?,
                    reset_connections: true,
                };
                let told = async {
                    let mut patience = FIRST_ANSWER;
                    loop {
                        let told = guest.restored(news.clone());
                        if let Ok(told) = tokio::time::timeout(patience, told).await {
                            break told;
                        }
                        patience *= 2;
                        guest = self.guests.connect(record.id, machine, within).await?;
                    }
                };
                let late = |_| GuestError::TimedOut {
                    sandbox: record.id,
                    seconds,
                };
                tokio::time::timeout(within, told).await.map_err(late)??;
            }
        }
        Ok(guest)
    }

    /// The configuration of a sandbox's machine.
    pub(crate) fn machine_config(
        &self,
        record: &SandboxRecord,
        disk: Option<DiskChain>,
    ) -> MachineConfig {
        let kernel = self.site.layout.kernel(record.spec.kernel);
        MachineConfig {
            sandbox: record.id,
            cpus: record.spec.resources.cpus,
            memory: record.spec.resources.memory,
            kernel: kernel.join("vmlinuz"),
            initramfs: kernel.join("initramfs"),
            command_line: Vec::new(),
            disk,
            disk_limits: record.spec.disk_limits,
            cpu_template: record.spec.cpu_template.clone(),
            network: None,
            track_memory: self.config.machine.memory_chain > 0,
            work: self.site.layout.sandbox(record.id),
            cgroups: Vec::new(),
            console_log: self.site.layout.sandbox(record.id).join("console.log"),
            console_bound: self.config.machine.console_bound,
            credentials: self.credentials(record.slot),
            called_off: CancellationToken::new(),
        }
    }

    /// Under root every machine has a uid and gid of its own; an ordinary user has only his.
    pub(crate) fn credentials(&self, slot: u32) -> Option<Credentials> {
        if !cowslip_host::process::is_root() {
            return None;
        }
        let id = self.config.machine.uid_base.saturating_add(slot);
        Some(Credentials {
            uid: id,
            gid: id,
            groups: kvm::group().into_iter().collect(),
        })
    }

    /// Ends the sandbox's machine and waits until it is gone; without one there is nothing to do.
    pub(crate) async fn end_machine(&self, id: SandboxId) -> Result<(), EngineError> {
        self.live.remove(id);
        self.water.thaw(id);
        self.end_names(id).await;
        self.listeners.end(id).await;
        let site = self.site.clone();
        let unwound = blocking(move || unwind(&site, Owner::Machine(id))).await?;
        self.unpublish().await;
        self.drop_base(id).await;
        // What machines shared and none uses any more; what stays is tried again with the next end.
        if let Err(error) = self.volumes.retire(&self.site).await {
            tracing::warn!(%error, "a disk's devices stay in the ledger");
        }
        Ok(unwound?)
    }

    /// The machine of a running sandbox.
    pub(crate) fn live(&self, record: &SandboxRecord) -> Result<Arc<Live>, EngineError> {
        self.live.get(record.id).ok_or_else(|| EngineError::State {
            verb: "use",
            name: record.name.clone(),
            state: record.state,
            reason: record.reason.clone(),
        })
    }

    /// The guest of a running machine; a connection that broke is made again.
    pub(crate) async fn guest(
        &self,
        record: &SandboxRecord,
        live: &Live,
    ) -> Result<Arc<dyn Guest>, EngineError> {
        let _one_at_a_time = live.connecting.lock().await;
        if let Some(guest) = live.guest() {
            return Ok(guest);
        }
        let within = Duration::from_secs(self.config.machine.restore_timeout);
        let guest = self
            .guests
            .connect(record.id, &live.machine, within)
            .await?;
        live.set_guest(Arc::clone(&guest));
        Ok(guest)
    }

    /// The agent of a running machine.
    pub(crate) async fn agent(
        &self,
        record: &SandboxRecord,
        live: &Live,
    ) -> Result<AgentClient, EngineError> {
        self.refuse_frozen(record.id, &record.name.to_string())?;
        let guest = self.guest(record, live).await?;
        guest
            .agent()
            .cloned()
            .ok_or_else(|| EngineError::Unsupported("this guest runs no agent".to_owned()))
    }

    /// The top layer of a sandbox that has a volume.
    pub(crate) fn top_of(&self, record: &SandboxRecord) -> Result<LayerId, EngineError> {
        record.layer.ok_or_else(|| {
            LedgerError::Missing(format!("volume of sandbox \"{}\"", record.name)).into()
        })
    }
}
