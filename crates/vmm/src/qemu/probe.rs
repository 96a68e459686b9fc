//! Whether a stock guest really boots on this host's KVM.
//!
//! The probe is a machine like any other, of a sandbox that never is: its handles are in the ledger
//! before they are acquired, so that an engine that dies in the middle leaves nothing behind. The
//! guest has booted when it opens the agent's port: its kernel ran, loaded its drivers and started the
//! agent, without any word of the agent's protocol.

use std::time::Duration;

use cowslip_host::{Directory, DirectorySpec, Site};
use cowslip_ledger::{HandleRow, LedgerError, Owner};
use cowslip_model::{ByteSize, DiskLimits, SandboxId};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::accelerator::Accelerator;
use super::launch::Beginning;
use super::{QemuVmm, Trial};
use crate::{CancellationToken, Machine, MachineConfig, VmmError};

/// How long a guest may take to boot. With a working KVM it takes less than a second.
const BOOT_BOUND: Duration = Duration::from_secs(10);
/// Enough for a stock kernel and its initramfs.
const MEMORY: ByteSize = ByteSize::mib(256);
const CONSOLE_BOUND: ByteSize = ByteSize(64 << 10);

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The guest booted.
    Works,
    /// It did not, and why.
    Fails(String),
}

/// Boots the guest of `trial` on KVM, and takes it away again.
pub(super) async fn kvm(vmm: &QemuVmm, site: &Site, trial: &Trial) -> Result<Verdict, VmmError> {
    let sandbox = SandboxId::random().map_err(LedgerError::from)?;
    let directory = site.layout.machine(sandbox);
    let config = MachineConfig {
        sandbox,
        cpus: 1,
        memory: MEMORY,
        kernel: trial.kernel.clone(),
        initramfs: trial.initramfs.clone(),
        command_line: vec!["cowslip.mode=probe".to_owned()],
        disk: None,
        disk_limits: DiskLimits::default(),
        cpu_template: None,
        network: None,
        track_memory: false,
        work: directory.clone(),
        cgroups: Vec::new(),
        console_log: directory.join("console.log"),
        console_bound: CONSOLE_BOUND,
        credentials: trial.credentials.clone(),
        called_off: CancellationToken::new(),
    };
    let verdict = run(vmm, site, &config).await;
    unwind(site, sandbox).await?;
    verdict
}

async fn run(vmm: &QemuVmm, site: &Site, config: &MachineConfig) -> Result<Verdict, VmmError> {
    let owner = Owner::Machine(config.sandbox);
    let spec = DirectorySpec {
        path: site.layout.machine(config.sandbox),
        mode: 0o700,
    };
    let slot = site.ledger.reserve::<Directory>(owner, spec, &[])?;
    let directory = site.host.make_directory(slot)?;
    let booted = tokio::time::timeout(BOOT_BOUND, boot(vmm, site, config)).await;
    directory.settle();
    Ok(match booted {
        Ok(Ok(())) => Verdict::Works,
        Ok(Err(error)) => Verdict::Fails(error.to_string()),
        Err(_) => Verdict::Fails(format!(
            "a guest did not boot within {} s",
            BOOT_BOUND.as_secs()
        )),
    })
}

async fn boot(vmm: &QemuVmm, site: &Site, config: &MachineConfig) -> Result<(), VmmError> {
    let machine = vmm
        .start(site, config, Accelerator::Kvm, Beginning::Boot)
        .await?;
    let mut events = machine.qmp().subscribe();
    let refused = |message: String| VmmError::Refused {
        operation: "boot the probe",
        sandbox: config.sandbox,
        message,
    };
    machine.resume().await?;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            detail = machine.ended() => {
                return Err(VmmError::Ended { operation: "boot the probe", sandbox: config.sandbox, detail });
            }
        };
        match event {
            Ok(event) if event.name == "VSERPORT_CHANGE" && event.data["open"] == json!(true) => {
                return Ok(());
            }
            // KVM gave up: the machine stands still for good.
            Ok(event) if event.name == "STOP" => {
                return Err(refused("KVM failed inside the guest".to_owned()));
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err(refused("no more events".to_owned())),
        }
    }
}

/// Releases the probe's handles in reverse. What does not go stays in the ledger for the reaper.
async fn unwind(site: &Site, sandbox: SandboxId) -> Result<(), VmmError> {
    let site = site.clone();
    let work = move || -> Result<(), VmmError> {
        let owner = Owner::Machine(sandbox);
        let rows: Vec<HandleRow> = site
            .ledger
            .read::<_, LedgerError>(|tx| tx.handles_of(owner))?;
        for row in rows.iter().rev() {
            site.host.release(row)?;
            site.ledger.forget(row)?;
        }
        Ok(())
    };
    super::blocking(work).await
}
