//! The simulated monitor: boots and restores guests of a [`World`], through the ledger as a real
//! one does.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::process::mark;
use cowslip_host::{
    HostError, Launch, Process, ProcessIdentity, ProcessSpec, Site, Socket, SocketSpec,
};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{LedgerError, MonitorInfo, Owner, Resource};
use cowslip_model::SandboxId;
use cowslip_vmm::{Machine, MachineConfig, Vmm, VmmError};

use crate::machine::SimMachine;
use crate::world::{self, FileNode, GuestState, Inner, Memory, Node, World};

/// One engine's monitor over a [`World`].
#[derive(Clone)]
pub struct SimVmm {
    world: World,
    faults: Injector,
    version: String,
}

impl SimVmm {
    /// The monitor with this injector.
    #[must_use]
    pub fn new(world: World, faults: Injector) -> Self {
        Self {
            world,
            faults,
            version: "1".to_owned(),
        }
    }

    /// The same of another version, which restores no image of this one.
    #[must_use]
    pub fn with_version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// Acts on the world as one step.
    fn step<T>(
        &self,
        step: &str,
        act: impl FnOnce(&mut Inner) -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        let outcome = self.faults.around(step, || act(&mut self.world.lock()));
        outcome.map_err(|fault| VmmError::from(LedgerError::from(fault)))?
    }

    /// Sockets and process of a machine that does nothing yet.
    fn launch(&self, site: &Site, config: &MachineConfig) -> Result<ProcessIdentity, VmmError> {
        let owner = Owner::Machine(config.sandbox);
        let runtime = site.layout.machine(config.sandbox);
        for name in ["monitor", "agent"] {
            let spec = SocketSpec {
                path: runtime.join(name),
                mode: 0o600,
            };
            let slot = site.ledger.reserve::<Socket>(owner, spec, &[])?;
            // The listener is not needed: what would be said over it is said to the world.
            let (held, _listener) = site.host.bind_socket(slot)?;
            held.settle();
        }
        let mark = mark(site.ledger.instance(), config.sandbox);
        let spec = ProcessSpec::unjailed(mark.clone());
        let slot = site.ledger.reserve_over_all::<Process>(owner, spec)?;
        let null = Path::new("/dev/null");
        let output = std::fs::File::open(null).map_err(HostError::path("open", null))?;
        let launch = Launch {
            program: PathBuf::from("simulated-monitor"),
            arguments: vec![mark],
            environment: Vec::new(),
            inherit: Vec::new(),
            output: OwnedFd::from(output),
            credentials: config.credentials.clone(),
            view: None,
            cgroups: Vec::new(),
            netns: None,
        };
        let held = site.host.spawn(slot, launch)?;
        let identity = held.identity().clone();
        held.settle();
        Ok(identity)
    }

    /// Gives the process a guest and its disk.
    fn fill(
        inner: &mut Inner,
        pid: u32,
        config: &MachineConfig,
        operation: &'static str,
        memory: impl FnOnce(Vec<String>) -> (Memory, Option<u64>),
        state: GuestState,
    ) -> Result<(), VmmError> {
        let sandbox = config.sandbox;
        let refused = |error: io::Error| VmmError::Refused {
            operation,
            sandbox,
            message: error.to_string(),
        };
        for file in [&config.kernel, &config.initramfs] {
            inner.file(file).map_err(refused)?;
        }
        let chain = match &config.disk {
            Some(disk) => inner.open_disk(sandbox, disk).map_err(refused)?,
            None => Vec::new(),
        };
        let (memory, saved) = memory(inner.content(&chain));
        let process = inner.processes.get_mut(&pid).ok_or(VmmError::Ended {
            operation,
            sandbox,
            detail: None,
        })?;
        process.machine = Some(world::Machine {
            state,
            memory,
            saved,
            told: false,
            chain,
        });
        inner.check_disk(sandbox);
        Ok(())
    }

    fn machine(&self, sandbox: SandboxId, pid: u32) -> Arc<dyn Machine> {
        let ended = self.world.lock().watch(pid);
        Arc::new(SimMachine {
            world: self.world.clone(),
            faults: self.faults.clone(),
            sandbox,
            pid,
            ended,
        })
    }
}

#[async_trait]
impl Vmm for SimVmm {
    fn info(&self) -> MonitorInfo {
        MonitorInfo {
            kind: "simulated".to_owned(),
            version: self.version.clone(),
            accelerator: "none".to_owned(),
            machine: "memory".to_owned(),
            cpu: None,
        }
    }

    fn restores(&self, saved: &MonitorInfo) -> Result<(), VmmError> {
        let present = self.info();
        if *saved == present {
            return Ok(());
        }
        let words = |info: &MonitorInfo| format!("{} {}", info.kind, info.version);
        Err(VmmError::Incompatible {
            saved: words(saved),
            present: words(&present),
            why: "the versions differ".to_owned(),
        })
    }

    async fn boot(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let pid = self.launch(site, config)?.pid;
        self.step("monitor: boot", |inner| {
            let memory = |disk| {
                let memory = Memory {
                    disk,
                    ..Memory::default()
                };
                (memory, None)
            };
            Self::fill(inner, pid, config, "boot", memory, GuestState::Running)
        })?;
        Ok(self.machine(config.sandbox, pid))
    }

    async fn restore(
        &self,
        site: &Site,
        config: &MachineConfig,
        image: &Path,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let pid = self.launch(site, config)?.pid;
        self.step("monitor: restore", |inner| {
            let unreadable = |source| VmmError::File {
                operation: "restore from",
                path: image.to_owned(),
                source,
            };
            let saved = inner.file(image).map_err(unreadable)?.image.clone();
            let saved = saved.ok_or_else(|| unreadable(io::ErrorKind::UnexpectedEof.into()))?;
            if saved.stands_on.is_some() {
                return Err(unreadable(io::Error::other("it holds only what changed")));
            }
            Self::fill(
                inner,
                pid,
                config,
                "restore",
                |_| (saved.memory, Some(saved.save)),
                GuestState::Paused,
            )
        })?;
        Ok(self.machine(config.sandbox, pid))
    }

    async fn complete(
        &self,
        image: &Path,
        stands_on: &[PathBuf],
        whole: &Path,
    ) -> Result<(), VmmError> {
        let failed = |source| VmmError::File {
            operation: "complete",
            path: image.to_owned(),
            source,
        };
        self.step("monitor: begin to complete", |inner| {
            let part = inner.create(whole, Node::File(FileNode::default()));
            part.map(drop).map_err(failed)
        })?;
        self.step("monitor: complete", |inner| {
            let read = |path: &Path| -> io::Result<world::Image> {
                let image = inner.file(path)?.image.clone();
                image.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            };
            let mut images = vec![read(image).map_err(failed)?];
            for path in stands_on {
                images.push(read(path).map_err(failed)?);
            }
            let next = images.iter().skip(1).map(|image| Some(image.save));
            let whole_one = world::Image {
                stands_on: None,
                ..images[0].clone()
            };
            let expected: Vec<Option<u64>> = next.chain([None]).collect();
            let found: Vec<Option<u64>> = images.iter().map(|image| image.stands_on).collect();
            if found != expected {
                let what = format!(
                    "\"{}\" was put together from images that do not stand on one another",
                    image.display()
                );
                inner.violation(what);
            }
            let node = inner.file_mut(whole).map_err(failed)?;
            node.image = Some(whole_one);
            node.length = 4096;
            Ok(())
        })
    }

    async fn attach(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let sandbox = config.sandbox;
        let gone = || VmmError::Ended {
            operation: "attach",
            sandbox,
            detail: None,
        };
        let rows = site
            .ledger
            .read(|tx| tx.handles_of(Owner::Machine(sandbox)))?;
        let row = rows
            .iter()
            .find(|row| row.kind == Process::KIND)
            .ok_or_else(gone)?;
        let mark = row.spec::<Process>()?.mark;
        // A row without an identity is of a process that never was told to run anything.
        let identity = row.identity::<Process>()?.ok_or_else(gone)?;
        self.step("monitor: attach", |inner| {
            let has_machine = inner
                .processes
                .get(&identity.pid)
                .is_some_and(|p| p.machine.is_some());
            if inner.is_alive(&mark, &identity) && has_machine {
                Ok(())
            } else {
                Err(gone())
            }
        })?;
        Ok(self.machine(sandbox, identity.pid))
    }
}
