//! Finding the monitor when it is first needed.

use std::sync::Arc;

use async_trait::async_trait;
use cowslip_vmm::firecracker::{self, FirecrackerConfig, FirecrackerVmm};
use cowslip_vmm::qemu::{Accelerator, Choice, QemuConfig, QemuVmm};
use cowslip_vmm::{Vmm, VmmError};
use tokio::sync::OnceCell;

use crate::config::{AcceleratorChoice, Config, Isolation, MonitorChoice};
use crate::parts::{Monitors, in_words};

/// The monitor that the configuration asks for.
pub(crate) fn chosen(config: &Config) -> Arc<dyn Monitors> {
    match config.machine.vmm {
        MonitorChoice::Qemu => Arc::new(QemuMonitors::new(config)),
        MonitorChoice::Firecracker => Arc::new(FirecrackerMonitors::new(config)),
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
}

/// KVM's device, as this user finds it.
enum Kvm {
    Opens,
    Closed,
    Absent,
}

impl Kvm {
    fn found() -> Self {
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        match opened {
            Ok(_) => Self::Opens,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::Absent,
            Err(_) => Self::Closed,
        }
    }
}

#[async_trait]
impl Monitors for QemuMonitors {
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
            (Choice::Auto, Some(Accelerator::Tcg)) => match Kvm::found() {
                Kvm::Opens => {
                    "/dev/kvm is there and no guest boots on it, so guests run under software emulation"
                }
                Kvm::Closed => {
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
    fn new(config: &Config) -> Self {
        Self {
            config: FirecrackerConfig {
                program: config.paths.firecracker.clone(),
                jailer: config.paths.jailer.clone(),
                isolation: match config.machine.isolation {
                    Isolation::Jail => firecracker::Isolation::Jail,
                    Isolation::Direct => firecracker::Isolation::Direct,
                },
            },
            found: OnceCell::new(),
        }
    }
}

#[async_trait]
impl Monitors for FirecrackerMonitors {
    async fn vmm(&self) -> Result<Arc<dyn Vmm>, VmmError> {
        let detect = || async { FirecrackerVmm::detect(&self.config).await.map(Arc::new) };
        let vmm = self.found.get_or_try_init(detect).await?;
        Ok(Arc::clone(vmm) as Arc<dyn Vmm>)
    }

    fn describe(&self) -> (Option<String>, String) {
        let vmm = self.found.get();
        let reason = "configured; Firecracker has no other than KVM";
        (vmm.map(|vmm| in_words(&vmm.info())), reason.to_owned())
    }
}
