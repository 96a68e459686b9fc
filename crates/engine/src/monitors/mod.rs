//! Monitors: those of this host, and which one a sandbox gets.

mod found;
mod usual;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cowslip_host::Site;
use cowslip_host::kvm::Kvm;
use cowslip_ledger::{KernelRecord, SandboxRecord};
use cowslip_model::api::CreateRequest;
use cowslip_model::{DiskFormat, Isolation, MonitorKind, NetworkMode, SandboxSpec};
use cowslip_vmm::qemu::Trial;
use cowslip_vmm::{Vmm, VmmError};

use crate::Engine;
use crate::config::{Config, MonitorChoice};
use crate::error::{EngineError, chain};
use crate::parts::{Described, Monitors};

pub use usual::Usual;

use found::{FirecrackerMonitors, QemuMonitors};
use usual::{Facts, OnKvm};

/// Virtual processors at most: what the machine types give.
const CPUS_MAX: u32 = 64;
const CPUS_MAX_FIRECRACKER: u32 = 32;

/// Those of this host.
pub(crate) struct HostMonitors {
    choice: MonitorChoice,
    /// The least that Firecracker is kept apart from the host.
    isolation: Isolation,
    /// What disks are made of that are not copies.
    disks: DiskFormat,
    qemu: QemuMonitors,
    jailed: FirecrackerMonitors,
    direct: FirecrackerMonitors,
    /// The newest answer to which is the usual one, which is described.
    usual: Mutex<Option<Usual>>,
}

impl HostMonitors {
    pub(crate) fn new(config: &Config, disks: DiskFormat) -> Self {
        Self {
            choice: config.machine.vmm,
            isolation: config.machine.isolation,
            disks,
            qemu: QemuMonitors::new(config),
            jailed: FirecrackerMonitors::new(config, Isolation::Jail),
            direct: FirecrackerMonitors::new(config, Isolation::Direct),
            usual: Mutex::default(),
        }
    }

    fn firecracker(&self, isolation: Isolation) -> &FirecrackerMonitors {
        match isolation {
            Isolation::Jail => &self.jailed,
            Isolation::Direct => &self.direct,
        }
    }
}

#[async_trait]
impl Monitors for HostMonitors {
    async fn vmm(&self, kind: MonitorKind, isolation: Isolation) -> Result<Arc<dyn Vmm>, VmmError> {
        match kind {
            MonitorKind::Qemu => self.qemu.vmm().await,
            MonitorKind::Firecracker => self.firecracker(isolation).vmm().await,
        }
    }

    async fn usual(&self, trial: Option<(&Site, &Trial)>) -> Result<Usual, VmmError> {
        let usual = match self.choice {
            MonitorChoice::Qemu => Usual::new(MonitorKind::Qemu, "configured"),
            MonitorChoice::Firecracker => Usual::new(MonitorKind::Firecracker, "configured"),
            MonitorChoice::Auto => {
                let monitors = self;
                usual::choose(&Asked { monitors, trial }, self.disks).await?
            }
        };
        let mut newest = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref() != Some(&usual) {
            tracing::info!(kind = ?usual.kind, usual.reason, "the monitor of sandboxes that ask for none");
            *newest = Some(usual.clone());
        }
        Ok(usual)
    }

    fn describe(&self) -> Described {
        let newest = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        let usual = newest.clone();
        drop(newest);
        let (qemu, accelerator_reason) = self.qemu.describe();
        match usual {
            None => Described {
                monitor: None,
                reason: "the first sandbox finds out".to_owned(),
                accelerator_reason,
            },
            Some(usual) if usual.kind == MonitorKind::Qemu => Described {
                monitor: qemu,
                reason: usual.reason,
                accelerator_reason,
            },
            Some(usual) => Described {
                monitor: self.firecracker(self.isolation).describe(),
                reason: usual.reason,
                accelerator_reason: "Firecracker has no other than KVM".to_owned(),
            },
        }
    }
}

/// This host's answers.
struct Asked<'a> {
    monitors: &'a HostMonitors,
    trial: Option<(&'a Site, &'a Trial)>,
}

#[async_trait]
impl Facts for Asked<'_> {
    fn lacks_kvm(&self) -> Option<String> {
        Kvm::look().obstacle()
    }

    async fn lacks_firecracker(&self) -> Option<String> {
        let found = self
            .monitors
            .firecracker(self.monitors.isolation)
            .vmm()
            .await;
        found.err().map(|error| chain(&error).join(": "))
    }

    async fn on_kvm(&self) -> Result<OnKvm, VmmError> {
        self.monitors.qemu.on_kvm(self.trial).await
    }
}

impl Engine {
    /// The monitor of a sandbox that is to be made: the one it asks for, else the only one that has what it asks
    /// for, else the usual one.
    pub(crate) async fn monitor_for(
        &self,
        request: &CreateRequest,
        kernel: &KernelRecord,
    ) -> Result<MonitorKind, EngineError> {
        if let Some(kind) = request.vmm {
            return Ok(kind);
        }
        match self.config.machine.vmm {
            MonitorChoice::Qemu => return Ok(MonitorKind::Qemu),
            MonitorChoice::Firecracker => return Ok(MonitorKind::Firecracker),
            MonitorChoice::Auto => {}
        }
        if request.cpu_template.is_some() {
            return Ok(MonitorKind::Firecracker);
        }
        let network = request.network.mode;
        let cpus = request.cpus.unwrap_or(self.config.defaults.cpus);
        if network.unwrap_or_else(|| self.usual_network()) == NetworkMode::User
            || cpus > CPUS_MAX_FIRECRACKER
        {
            return Ok(MonitorKind::Qemu);
        }
        let directory = self.site.layout.kernel(kernel.id);
        self.refresh_agent(&directory).await?;
        let trial = Trial {
            kernel: directory.join(cowslip_guest::VMLINUZ),
            initramfs: directory.join(cowslip_guest::INITRAMFS),
            // The last one's, which no sandbox has before all the others are there.
            credentials: self.credentials(self.slot_count().saturating_sub(1)),
        };
        let usual = self.monitors.usual(Some((&self.site, &trial))).await?.kind;
        if usual == MonitorKind::Firecracker {
            let isolation = self.config.machine.isolation;
            let firecracker = self.monitors.vmm(usual, isolation).await?;
            if let Err(error) = firecracker.boots(&trial.kernel) {
                tracing::warn!(%error, "a sandbox that asks for no monitor gets QEMU");
                return Ok(MonitorKind::Qemu);
            }
        }
        Ok(usual)
    }

    /// Refuses numbers of processors that this monitor cannot give.
    pub(crate) fn check_cpus(cpus: u32, vmm: MonitorKind) -> Result<(), EngineError> {
        let most = match vmm {
            MonitorKind::Qemu => CPUS_MAX,
            MonitorKind::Firecracker => CPUS_MAX_FIRECRACKER,
        };
        match (1..=most).contains(&cpus) {
            true => Ok(()),
            false => Err(EngineError::Invalid(format!(
                "{cpus} virtual processors: give 1 to {most}"
            ))),
        }
    }

    /// What runs the machine of this sandbox. What the configuration asks for may have become more since
    /// the sandbox was made, and is what it gets.
    pub(crate) async fn monitor_of(
        &self,
        record: &SandboxRecord,
    ) -> Result<Arc<dyn Vmm>, EngineError> {
        let (kind, isolation) = (record.spec.vmm, self.isolation_of(&record.spec));
        Ok(self.monitors.vmm(kind, isolation).await?)
    }

    pub(crate) fn isolation_of(&self, spec: &SandboxSpec) -> Isolation {
        spec.isolation.at_least(self.config.machine.isolation)
    }

    /// Refuses less isolation than the configuration says.
    pub(crate) fn allowed_isolation(
        &self,
        wanted: Option<Isolation>,
        usual: Isolation,
    ) -> Result<Isolation, EngineError> {
        let least = self.config.machine.isolation;
        match wanted {
            Some(wanted) if wanted.at_least(least) != wanted => Err(EngineError::Unsupported(
                "this engine runs Firecracker in a jail only: to allow less, set isolation = \"direct\" \
                 in the [machine] of its configuration"
                    .to_owned(),
            )),
            Some(wanted) => Ok(wanted),
            None => Ok(usual),
        }
    }
}
