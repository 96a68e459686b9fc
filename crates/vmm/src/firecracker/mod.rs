//! Firecracker as the monitor: in a jail, or in direct mode, as a process of the engine's own user.
//!
//! ```text
//!   program   which Firecracker, which jailer        launch   its view, its console, its process
//!   seccomp   whether it has its filters
//!   paths     the constant paths, and the host's     jail     what a jail is made of
//!   image     memory and device state in one file    socket   sockets that something hostile made
//!   machine   one running Firecracker ─ api (control), vsock (the agent), ending, farewell (the guest's)
//! ```
//!
//! Device state names the disk and the vsock socket by path. So that one image can be restored many
//! times at once, and in either mode, every Firecracker sees its own runtime directory at one constant
//! path, in a mount namespace of its own. Nothing here ends a machine; that is the engine's, by
//! unwinding its owner.

pub mod api;
mod devices;
mod ending;
mod farewell;
mod image;
mod jail;
mod launch;
mod machine;
mod paths;
mod program;
mod seccomp;
mod socket;
#[cfg(test)]
mod tests;
mod vsock;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::Site;
use cowslip_host::process::Process;
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{HandleState, LedgerError, MonitorInfo, Owner, Resource};
use cowslip_model::Isolation;

pub use program::{Version, VersionError};

use launch::Beginning;
use machine::FirecrackerMachine;
use paths::Paths;
use program::Programs;

use crate::{Machine, MachineConfig, Vmm, VmmError, blocking, cpu};

/// The kind, as images record it.
const KIND: &str = "firecracker";
/// Its only accelerator.
const ACCELERATOR: &str = "kvm";
/// How its devices are found by the guest; a machine with PCI would be another one.
const MACHINE: &str = "mmio";
/// Names the program where the configuration does not.
const PROGRAM_VARIABLE: &str = "COWSLIP_FIRECRACKER";

/// Names the jailer where the configuration does not.
const JAILER_VARIABLE: &str = "COWSLIP_JAILER";

/// What the configuration says of Firecracker.
#[derive(Debug, Clone, Default)]
pub struct FirecrackerConfig {
    /// The program's absolute path; none: `COWSLIP_FIRECRACKER`, else `firecracker` on the PATH.
    pub program: Option<PathBuf>,
    /// The jailer's; none: `COWSLIP_JAILER`, else `jailer` on the PATH.
    pub jailer: Option<PathBuf>,
    /// Whether there is a jail. Less than what is asked for is never given.
    pub isolation: Isolation,
    /// Whether one without seccomp filters may run.
    pub unfiltered: bool,
}

/// Firecracker on this host.
#[derive(Debug)]
pub struct FirecrackerVmm {
    programs: Programs,
    unfiltered: bool,
}

impl FirecrackerVmm {
    /// Finds Firecracker, and the jailer where there is to be a jail.
    ///
    /// # Errors
    /// [`VmmError::Unusable`] where there is no Firecracker, an old one, no KVM, or no jail though there
    /// is to be one.
    pub async fn detect(config: &FirecrackerConfig) -> Result<Self, VmmError> {
        let path = std::env::var_os("PATH");
        let find = |name, given: &Option<PathBuf>, variable| {
            let given = given.clone();
            let given = given.or_else(|| std::env::var_os(variable).map(PathBuf::from));
            program::locate(name, given.as_deref(), path.as_deref())
        };
        let found = find(program::NAME, &config.program, PROGRAM_VARIABLE)?;
        let firecracker = program::inspect(program::NAME, found).await?;
        let jailer = match config.isolation {
            Isolation::Direct => None,
            Isolation::Jail => {
                if !cowslip_host::process::is_root() {
                    return Err(launch::no_user());
                }
                let found = find(program::JAILER, &config.jailer, JAILER_VARIABLE)
                    .map_err(program::or_direct)?;
                let jailer = program::inspect(program::JAILER, found).await?;
                if jailer.version != firecracker.version {
                    let (own, other) = (&jailer.version, &firecracker.version);
                    return Err(program::unusable(
                        &jailer.path,
                        format_args!(
                            "it is version {own}, and Firecracker is version {other}: use those of one \
                             release"
                        ),
                    ));
                }
                program::require_static(&firecracker)?;
                Some(jailer)
            }
        };
        program::require_kvm()?;
        Ok(Self {
            programs: Programs {
                firecracker,
                jailer,
            },
            unfiltered: config.unfiltered,
        })
    }

    /// Firecracker's version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.programs.firecracker.version
    }

    /// Starts the process and connects to it; it has no machine yet.
    async fn start(
        &self,
        site: &Site,
        config: &MachineConfig,
        beginning: Beginning,
    ) -> Result<(FirecrackerMachine, launch::Acquired), VmmError> {
        let mut acquired = {
            let (programs, site, config) = (self.programs.clone(), site.clone(), config.clone());
            blocking(move || launch::acquire(&programs, &site, &config, &beginning)).await?
        };
        let paths = Paths::new(&site.layout, config.sandbox);
        let (spec, identity) = (
            acquired.process.spec().clone(),
            acquired.process.identity().clone(),
        );
        let pid = identity.pid;
        let machine = FirecrackerMachine::connect(paths, config, spec, identity)?;
        acquired.console = None;
        machine.wait(&config.called_off).await?;
        if !self.unfiltered {
            let program = self.programs.firecracker.path.clone();
            blocking(move || seccomp::require(pid, &program)).await?;
        }
        Ok((machine, acquired))
    }
}

#[async_trait]
impl Vmm for FirecrackerVmm {
    fn info(&self) -> MonitorInfo {
        MonitorInfo {
            kind: KIND.to_owned(),
            version: self.programs.firecracker.version.to_string(),
            accelerator: ACCELERATOR.to_owned(),
            machine: MACHINE.to_owned(),
            cpu: cpu::present(),
        }
    }

    fn boots(&self, kernel: &Path) -> Result<(), VmmError> {
        self.programs.firecracker.boots(kernel)
    }

    fn restores(&self, saved: &MonitorInfo) -> Result<(), VmmError> {
        compare(saved, &self.info())
    }

    async fn boot(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        self.boots(&config.kernel)?;
        let (machine, acquired) = self.start(site, config, Beginning::Boot).await?;
        machine.boot(config).await?;
        acquired.settle();
        Ok(Arc::new(machine))
    }

    async fn restore(
        &self,
        site: &Site,
        config: &MachineConfig,
        image: &Path,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let beginning = Beginning::Image(image.to_owned());
        let (machine, acquired) = self.start(site, config, beginning).await?;
        machine.load(image, config.track_memory).await?;
        acquired.settle();
        Ok(Arc::new(machine))
    }

    async fn complete(
        &self,
        image: &Path,
        stands_on: &[PathBuf],
        whole: &Path,
    ) -> Result<(), VmmError> {
        let (image, stands_on, whole) = (image.to_owned(), stands_on.to_owned(), whole.to_owned());
        blocking(move || {
            image::complete(&image, &stands_on, &whole).map_err(launch::failed(
                "put together the whole of the image",
                &image,
            ))
        })
        .await
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
            return Err(ended(ending::last_words(&paths.log, None)));
        }
        let spec = row.spec::<Process>()?;
        let mut machine = FirecrackerMachine::connect(paths, config, spec, identity)?;
        machine.take_over().await?;
        Ok(Arc::new(machine))
    }
}

/// Whether an image of `saved` can be restored by `present`. The format of device state changes between
/// releases, and nothing promises that a later one reads it: only the same release restores.
fn compare(saved: &MonitorInfo, present: &MonitorInfo) -> Result<(), VmmError> {
    let release = |info: &MonitorInfo| {
        let version = info.version.parse::<Version>().ok()?;
        Some((version.major, version.minor, version.development))
    };
    let why = if saved.kind != present.kind {
        "the monitors differ"
    } else if saved.machine != present.machine || saved.accelerator != present.accelerator {
        "the machine types differ"
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
        format!("{} {} ({}){on}", info.kind, info.version, info.machine)
    };
    VmmError::Incompatible {
        saved: name(saved),
        present: name(present),
        why,
    }
}
