//! QEMU as the monitor.
//!
//! ```text
//!   program      which QEMU, which version        launch     sockets, files, process
//!   accelerator  KVM or TCG, remembered           arguments  its command line
//!   probe        does KVM boot a guest?           passing    files as descriptors
//!   machine      one running QEMU ─ qmp (control), disk, migration (images), ending
//! ```
//!
//! The process runs under a user of its own, sees no directory of ours, and opens no path but what
//! belongs to QEMU itself: sockets are bound for it and files are passed as descriptors. Nothing here
//! ends a machine but the probe its own; that is the engine's, by unwinding the machine's owner.

mod accelerator;
mod arguments;
mod disk;
mod ending;
mod launch;
mod machine;
mod migration;
mod network;
mod passing;
mod probe;
mod program;
mod qmp;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::Site;
use cowslip_host::kvm::Kvm;
use cowslip_host::process::Process;
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{HandleState, LedgerError, MonitorInfo, Owner, Resource};
use tokio::sync::OnceCell;

pub use accelerator::{Accelerator, Choice, ChoiceError};
pub use program::{Version, VersionError};

use accelerator::{Circumstances, Memory};
use launch::{Beginning, Paths};
use machine::QemuMachine;
use probe::Verdict;
use program::Program;

use crate::{Credentials, Machine, MachineConfig, Vmm, VmmError, blocking, cpu};

/// The kind, as images record it.
const KIND: &str = "qemu";
/// Names the program where the configuration does not.
const PROGRAM_VARIABLE: &str = "COWSLIP_QEMU";

/// What the configuration says of QEMU.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The program's absolute path; none: `COWSLIP_QEMU`, else `qemu-system-x86_64` on the PATH.
    pub program: Option<PathBuf>,
    /// Which accelerator.
    pub accelerator: Choice,
    /// The file that remembers whether KVM boots a guest here. May be shared between engines.
    pub memory: PathBuf,
}

/// A guest that shows whether guests boot on KVM.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs' file.
    pub initramfs: PathBuf,
    /// The user the monitor runs as; none: the engine's own.
    pub credentials: Option<Credentials>,
}

impl Trial {
    /// What this machine boots.
    #[must_use]
    pub fn of(config: &MachineConfig) -> Self {
        Self {
            kernel: config.kernel.clone(),
            initramfs: config.initramfs.clone(),
            credentials: config.credentials.clone(),
        }
    }
}

/// QEMU on this host.
#[derive(Debug)]
pub struct QemuVmm {
    program: Program,
    memory: Memory,
    /// Empty until a probe has decided.
    accelerator: OnceCell<Accelerator>,
}

impl QemuVmm {
    /// Finds QEMU and reads its version. Where KVM is to be used only if it works and no answer is
    /// remembered, the first machine that is started (or [`QemuVmm::decide`]) finds out.
    ///
    /// # Errors
    /// [`VmmError::Unusable`] where there is no QEMU, an old one, or KVM is asked for and not there.
    pub async fn detect(config: &QemuConfig) -> Result<Self, VmmError> {
        let given = config
            .program
            .clone()
            .or_else(|| std::env::var_os(PROGRAM_VARIABLE).map(PathBuf::from));
        let path = program::locate(given.as_deref(), std::env::var_os("PATH").as_deref())?;
        let program = program::inspect(path).await?;
        let memory = Memory::new(&config.memory);
        let known = match config.accelerator {
            Choice::Tcg => Some(Accelerator::Tcg),
            Choice::Kvm => match Kvm::look().obstacle() {
                None => Some(Accelerator::Kvm),
                Some(why) => {
                    return Err(VmmError::Unusable {
                        program: "kvm".to_owned(),
                        why: format!("{why}, or configure \"tcg\""),
                    });
                }
            },
            Choice::Auto if !Kvm::look().opens() => Some(Accelerator::Tcg),
            Choice::Auto => memory.recall(&Circumstances::present(program.version)),
        };
        let accelerator = OnceCell::new_with(known);
        Ok(Self {
            program,
            memory,
            accelerator,
        })
    }

    /// QEMU's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.program.version
    }

    /// QEMU's program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program.path
    }

    /// The accelerator, once it is known.
    #[must_use]
    pub fn accelerator(&self) -> Option<Accelerator> {
        self.accelerator.get().copied()
    }

    /// Finds out which accelerator to use, by booting the guest of `trial` on KVM where that is not known yet. At
    /// most once; callers at the same time share it.
    ///
    /// # Errors
    /// When the probe could not be made or not be taken away again. That KVM does not work is none.
    pub async fn decide(&self, site: &Site, trial: &Trial) -> Result<Accelerator, VmmError> {
        let decide = || async {
            let found = match probe::kvm(self, site, trial).await? {
                Verdict::Works => Accelerator::Kvm,
                Verdict::Fails(why) => {
                    tracing::warn!(
                        why,
                        "KVM is there and boots no guest: guests run under TCG, slower"
                    );
                    Accelerator::Tcg
                }
            };
            self.memory
                .record(Circumstances::present(self.program.version), found);
            Ok(found)
        };
        self.accelerator.get_or_try_init(decide).await.copied()
    }

    /// Starts a machine, connects to it and sets it up; its vCPUs stand still.
    async fn start(
        &self,
        site: &Site,
        config: &MachineConfig,
        accelerator: Accelerator,
        beginning: Beginning,
    ) -> Result<QemuMachine, VmmError> {
        let program = self.program.path.clone();
        let acquired = {
            let (site, config) = (site.clone(), config.clone());
            blocking(move || launch::acquire(&program, accelerator, &site, &config, beginning))
                .await?
        };
        let paths = Paths::new(&site.layout, config.sandbox);
        let (spec, identity) = (
            acquired.process.spec().clone(),
            acquired.process.identity().clone(),
        );
        let machine = QemuMachine::connect(paths, config, spec, identity).await?;
        machine.prepare().await?;
        acquired.settle();
        Ok(machine)
    }
}

#[async_trait]
impl Vmm for QemuVmm {
    fn info(&self) -> MonitorInfo {
        MonitorInfo {
            kind: KIND.to_owned(),
            version: self.program.version.to_string(),
            accelerator: self
                .accelerator()
                .unwrap_or(Accelerator::Tcg)
                .as_str()
                .to_owned(),
            machine: arguments::MACHINE.to_owned(),
            // Translation shows every guest the same processor.
            cpu: match self.accelerator() {
                Some(Accelerator::Kvm) => cpu::present(),
                Some(Accelerator::Tcg) | None => None,
            },
        }
    }

    async fn settle(&self, site: &Site, config: &MachineConfig) -> Result<(), VmmError> {
        self.decide(site, &Trial::of(config)).await.map(drop)
    }

    fn restores(&self, saved: &MonitorInfo) -> Result<(), VmmError> {
        compare(saved, &self.info())
    }

    async fn boot(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let accelerator = self.decide(site, &Trial::of(config)).await?;
        let machine = self
            .start(site, config, accelerator, Beginning::Boot)
            .await?;
        machine.resume().await?;
        Ok(Arc::new(machine))
    }

    async fn restore(
        &self,
        site: &Site,
        config: &MachineConfig,
        image: &Path,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let accelerator = self.decide(site, &Trial::of(config)).await?;
        let machine = self
            .start(site, config, accelerator, Beginning::Incoming)
            .await?;
        machine.load(image).await?;
        Ok(Arc::new(machine))
    }

    /// Every image of QEMU is whole.
    async fn complete(
        &self,
        image: &Path,
        _stands_on: &[PathBuf],
        _whole: &Path,
    ) -> Result<(), VmmError> {
        Err(VmmError::File {
            operation: "put together, though QEMU saves only whole ones, the image",
            path: image.to_owned(),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    async fn attach(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        const OPERATION: &str = "attach";
        let sandbox = config.sandbox;
        let ended = |detail: Option<String>| VmmError::Ended {
            operation: OPERATION,
            sandbox,
            detail,
        };
        let paths = Paths::new(&site.layout, sandbox);
        let rows = site
            .ledger
            .read::<_, LedgerError>(|tx| tx.handles_of(Owner::Machine(sandbox)))?;
        let row = rows
            .iter()
            .find(|row| row.kind == Process::KIND && row.state == HandleState::Held)
            .ok_or_else(|| ended(Some("no process of it was recorded".to_owned())))?;
        let identity = row
            .identity::<Process>()?
            .ok_or_else(|| ended(Some("its process was not recorded".to_owned())))?;
        if site.host.probe(row)? != Presence::Present {
            return Err(ended(paths.last_words()));
        }
        let machine = QemuMachine::connect(paths, config, row.spec::<Process>()?, identity).await?;
        machine.prepare().await?;
        Ok(Arc::new(machine))
    }
}

/// Whether an image of `saved` can be restored by `present`. The machine type is versioned, but the
/// processor that QEMU shows is that of its release (`max`) or of the host (`host`): only the same
/// release restores.
fn compare(saved: &MonitorInfo, present: &MonitorInfo) -> Result<(), VmmError> {
    let release = |info: &MonitorInfo| {
        info.version
            .parse::<Version>()
            .ok()
            .map(|version| (version.major, version.minor))
    };
    let why = if saved.kind != present.kind {
        "the monitors differ"
    } else if saved.machine != present.machine {
        "the machine types differ"
    } else if saved.accelerator != present.accelerator {
        "the accelerators differ"
    } else if release(saved).is_none() || release(saved) != release(present) {
        "the releases differ; run the one that saved it"
    } else if let Some(why) = cpu::differs(saved.cpu.as_ref(), present.cpu.as_ref()) {
        return Err(incompatible(saved, present, why));
    } else {
        return Ok(());
    };
    Err(incompatible(saved, present, why.to_owned()))
}

fn incompatible(saved: &MonitorInfo, present: &MonitorInfo, why: String) -> VmmError {
    let name = |info: &MonitorInfo| {
        let on = cpu::name(info.cpu.as_ref());
        format!(
            "{} {} ({}, {}){on}",
            info.kind, info.version, info.accelerator, info.machine
        )
    };
    VmmError::Incompatible {
        saved: name(saved),
        present: name(present),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(version: &str, accelerator: &str) -> MonitorInfo {
        MonitorInfo {
            kind: KIND.to_owned(),
            version: version.to_owned(),
            accelerator: accelerator.to_owned(),
            machine: arguments::MACHINE.to_owned(),
            cpu: None,
        }
    }

    #[test]
    fn only_the_same_release_and_accelerator_restore() {
        let present = info("7.2.22", "tcg");
        compare(&info("7.2.9", "tcg"), &present).unwrap();
        for other in [
            info("7.1.0", "tcg"),
            info("8.2.0", "tcg"),
            info("7.2.22", "kvm"),
            info("?", "tcg"),
        ] {
            let error = compare(&other, &present).unwrap_err().to_string();
            assert!(
                error.contains(&other.version) && error.contains("7.2.22"),
                "{error}"
            );
        }
        let mut other = info("7.2.22", "tcg");
        other.machine = "microvm".to_owned();
        assert!(compare(&other, &present).is_err());
        other.kind = "firecracker".to_owned();
        assert!(compare(&other, &present).is_err());
    }
}
