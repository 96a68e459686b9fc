//! Finding monitors when they are first needed.

use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::kvm::Kvm;
use cowslip_ledger::SandboxRecord;
use cowslip_model::{Isolation, MonitorKind, SandboxSpec};
use cowslip_vmm::firecracker::{FirecrackerConfig, FirecrackerVmm};
use cowslip_vmm::qemu::{Accelerator, Choice, QemuConfig, QemuVmm};
use cowslip_vmm::{Vmm, VmmError};
use tokio::sync::OnceCell;

use crate::Engine;
use crate::config::{AcceleratorChoice, Config};
use crate::error::EngineError;
use crate::parts::{Monitors, in_words};

/// Those of this host.
pub(crate) struct HostMonitors {
    /// What the configuration says: the one that is described.
    kind: MonitorKind,
    qemu: QemuMonitors,
    jailed: FirecrackerMonitors,
    direct: FirecrackerMonitors,
}

impl HostMonitors {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            kind: config.machine.vmm,
            qemu: QemuMonitors::new(config),
            jailed: FirecrackerMonitors::new(config, Isolation::Jail),
            direct: FirecrackerMonitors::new(config, Isolation::Direct),
        }
    }
}

#[async_trait]
impl Monitors for HostMonitors {
    async fn vmm(&self, kind: MonitorKind, isolation: Isolation) -> Result<Arc<dyn Vmm>, VmmError> {
        match (kind, isolation) {
            (MonitorKind::Qemu, _) => self.qemu.vmm().await,
            (MonitorKind::Firecracker, Isolation::Jail) => self.jailed.vmm().await,
            (MonitorKind::Firecracker, Isolation::Direct) => self.direct.vmm().await,
        }
    }

    fn describe(&self) -> (Option<String>, String) {
        match self.kind {
            MonitorKind::Qemu => self.qemu.describe(),
            MonitorKind::Firecracker => {
                let found = self.jailed.describe().or_else(|| self.direct.describe());
                let reason = "Firecracker has no other than KVM";
                (found, reason.to_owned())
            }
        }
    }
}

impl Engine {
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

/// QEMU, found once and kept; a failed search is made again, so that installing it is enough.
struct QemuMonitors {
    config: QemuConfig,
    found: OnceCell<Arc<QemuVmm>>,
}

impl QemuMonitors {
    fn new(config: &Config) -> Self {
        let accelerator = match config.machine.accelerator {
            AcceleratorChoice::Auto => Choice::Auto,
            AcceleratorChoice::Kvm => Choice::Kvm,
            AcceleratorChoice::Tcg => Choice::Tcg,
        };
        let config = QemuConfig {
            program: config.paths.qemu.clone(),
            accelerator,
            memory: config.paths.cache.join("kvm.json"),
        };
        Self {
            config,
            found: OnceCell::new(),
        }
    }

    async fn vmm(&self) -> Result<Arc<dyn Vmm>, VmmError> {
        let detect = || async { QemuVmm::detect(&self.config).await.map(Arc::new) };
        let vmm = self.found.get_or_try_init(detect).await?;
        Ok(Arc::clone(vmm) as Arc<dyn Vmm>)
    }

    fn describe(&self) -> (Option<String>, String) {
        let vmm = self.found.get();
        let accelerator = vmm.and_then(|vmm| vmm.accelerator());
        let reason = match (self.config.accelerator, accelerator) {
            (Choice::Tcg | Choice::Kvm, _) => "configured",
            (Choice::Auto, Some(Accelerator::Kvm)) => "a guest was seen to boot on KVM",
            (Choice::Auto, Some(Accelerator::Tcg)) => match Kvm::look() {
                Kvm::Opens => {
                    "/dev/kvm is there and no guest boots on it, so guests run under software emulation"
                }
                Kvm::Closed(_) => {
                    "/dev/kvm is there and does not open for this user, so guests run under software \
                     emulation: give the user the group that /dev/kvm has"
                }
                Kvm::Absent => "there is no KVM, so guests run under software emulation",
            },
            (Choice::Auto, None) => {
                "not known yet: the first start finds out whether a guest boots on KVM"
            }
        };
        (vmm.map(|vmm| in_words(&vmm.info())), reason.to_owned())
    }
}

/// Firecracker, found once and kept.
struct FirecrackerMonitors {
    config: FirecrackerConfig,
    found: OnceCell<Arc<FirecrackerVmm>>,
}

impl FirecrackerMonitors {
    fn new(config: &Config, isolation: Isolation) -> Self {
        Self {
            config: FirecrackerConfig {
                program: config.paths.firecracker.clone(),
                jailer: config.paths.jailer.clone(),
                isolation,
                unfiltered: !config.machine.require_seccomp,
            },
            found: OnceCell::new(),
        }
    }

    async fn vmm(&self) -> Result<Arc<dyn Vmm>, VmmError> {
        let detect = || async { FirecrackerVmm::detect(&self.config).await.map(Arc::new) };
        let vmm = self.found.get_or_try_init(detect).await?;
        Ok(Arc::clone(vmm) as Arc<dyn Vmm>)
    }

    fn describe(&self) -> Option<String> {
        self.found.get().map(|vmm| in_words(&vmm.info()))
    }
}
