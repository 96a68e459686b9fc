//! The monitors of this host, each found when it is first needed.

use std::sync::Arc;

use cowslip_host::Site;
use cowslip_host::kvm::Kvm;
use cowslip_model::Isolation;
use cowslip_vmm::firecracker::{FirecrackerConfig, FirecrackerVmm};
use cowslip_vmm::qemu::{Accelerator, Choice, QemuConfig, QemuVmm, Trial};
use cowslip_vmm::{Vmm, VmmError};
use tokio::sync::OnceCell;

use super::usual::OnKvm;
use crate::config::{AcceleratorChoice, Config};
use crate::parts::in_words;

/// QEMU, found once and kept; a failed search is made again, so that installing it is enough.
pub(super) struct QemuMonitors {
    config: QemuConfig,
    found: OnceCell<Arc<QemuVmm>>,
}

impl QemuMonitors {
    pub(super) fn new(config: &Config) -> Self {
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

    async fn find(&self) -> Result<&Arc<QemuVmm>, VmmError> {
        let detect = || async { QemuVmm::detect(&self.config).await.map(Arc::new) };
        self.found.get_or_try_init(detect).await
    }

    pub(super) async fn vmm(&self) -> Result<Arc<dyn Vmm>, VmmError> {
        Ok(Arc::clone(self.find().await?) as Arc<dyn Vmm>)
    }

    /// Whether guests boot on KVM; where that is not known it is tried with `trial`, if there is one.
    pub(super) async fn on_kvm(&self, trial: Option<(&Site, &Trial)>) -> Result<OnKvm, VmmError> {
        let Ok(qemu) = self.find().await else {
            return Ok(OnKvm::Untried);
        };
        let known = match (qemu.accelerator(), trial) {
            (None, Some((site, trial))) => Some(qemu.decide(site, trial).await?),
            (known, _) => known,
        };
        Ok(match known {
            Some(Accelerator::Kvm) => OnKvm::Boot,
            Some(Accelerator::Tcg) => OnKvm::DoNot,
            None => OnKvm::Unknown,
        })
    }

    pub(super) fn describe(&self) -> (Option<String>, String) {
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
pub(super) struct FirecrackerMonitors {
    config: FirecrackerConfig,
    found: OnceCell<Arc<FirecrackerVmm>>,
}

impl FirecrackerMonitors {
    pub(super) fn new(config: &Config, isolation: Isolation) -> Self {
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

    pub(super) async fn vmm(&self) -> Result<Arc<dyn Vmm>, VmmError> {
        let detect = || async { FirecrackerVmm::detect(&self.config).await.map(Arc::new) };
        let vmm = self.found.get_or_try_init(detect).await?;
        Ok(Arc::clone(vmm) as Arc<dyn Vmm>)
    }

    pub(super) fn describe(&self) -> Option<String> {
        self.found.get().map(|vmm| in_words(&vmm.info()))
    }
}
