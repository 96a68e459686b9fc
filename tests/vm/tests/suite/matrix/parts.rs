//! The real monitors and guests, each call to them a step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cowslip_engine::Parts;
use cowslip_engine::guest::{BootTimes, Guest, GuestError, Guests, Restored, Setup};
use cowslip_engine::parts::{Described, Monitors, Usual};
use cowslip_host::Site;
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{LedgerError, MonitorInfo};
use cowslip_model::{DiskLayer, Isolation, MonitorKind, SandboxId};
use cowslip_proto::AgentClient;
use cowslip_vmm::qemu::Trial;
use cowslip_vmm::{AgentChannel, Machine, MachineConfig, RunState, Saved, Vmm, VmmError};

/// The same parts, whose calls ask `steps` first.
pub(super) fn with_steps(parts: Parts, steps: &Injector) -> Parts {
    Parts {
        monitors: Arc::new(Stepped(parts.monitors, steps.clone())),
        guests: Arc::new(Stepped(parts.guests, steps.clone())),
        ..parts
    }
}

struct Stepped<T>(T, Injector);

impl<T> Stepped<T> {
    async fn step<R, E: From<VmmError>>(
        &self,
        step: &str,
        work: impl Future<Output = Result<R, E>> + Send,
    ) -> Result<R, E> {
        match self.1.around_async(step, work).await {
            Ok(result) => result,
            Err(fault) => Err(VmmError::Ledger(LedgerError::from(fault)).into()),
        }
    }
}

#[async_trait]
impl Monitors for Stepped<Arc<dyn Monitors>> {
    async fn vmm(&self, kind: MonitorKind, isolation: Isolation) -> Result<Arc<dyn Vmm>, VmmError> {
        let vmm = self.0.vmm(kind, isolation).await?;
        Ok(Arc::new(Stepped(vmm, self.1.clone())))
    }

    async fn usual(&self, trial: Option<(&Site, &Trial)>) -> Result<Usual, VmmError> {
        self.0.usual(trial).await
    }

    fn describe(&self) -> Described {
        self.0.describe()
    }
}

impl Stepped<Arc<dyn Vmm>> {
    fn machine(&self, machine: Arc<dyn Machine>) -> Arc<dyn Machine> {
        Arc::new(Stepped(machine, self.1.clone()))
    }
}

#[async_trait]
impl Vmm for Stepped<Arc<dyn Vmm>> {
    fn info(&self) -> MonitorInfo {
        self.0.info()
    }

    async fn settle(&self, site: &Site, config: &MachineConfig) -> Result<(), VmmError> {
        self.0.settle(site, config).await
    }

    fn boots(&self, kernel: &Path) -> Result<(), VmmError> {
        self.0.boots(kernel)
    }

    fn restores(&self, saved: &MonitorInfo) -> Result<(), VmmError> {
        self.0.restores(saved)
    }

    async fn boot(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let made = self.step("vmm: boot", self.0.boot(site, config)).await?;
        Ok(self.machine(made))
    }

    async fn restore(
        &self,
        site: &Site,
        config: &MachineConfig,
        image: &Path,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let restored = self.0.restore(site, config, image);
        let made = self.step("vmm: restore", restored).await?;
        Ok(self.machine(made))
    }

    async fn complete(
        &self,
        image: &Path,
        stands_on: &[PathBuf],
        whole: &Path,
    ) -> Result<(), VmmError> {
        let completed = self.0.complete(image, stands_on, whole);
        self.step("vmm: complete", completed).await
    }

    async fn attach(
        &self,
        site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let made = self.0.attach(site, config).await?;
        Ok(self.machine(made))
    }
}

#[async_trait]
impl Machine for Stepped<Arc<dyn Machine>> {
    async fn pause(&self) -> Result<(), VmmError> {
        self.step("machine: pause", self.0.pause()).await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.step("machine: resume", self.0.resume()).await
    }

    async fn state(&self) -> Result<RunState, VmmError> {
        self.0.state().await
    }

    async fn save(&self, image: &Path, base: Option<&Path>) -> Result<Saved, VmmError> {
        self.step("machine: save", self.0.save(image, base)).await
    }

    fn tracks_memory(&self) -> bool {
        self.0.tracks_memory()
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), VmmError> {
        self.step("machine: change disk", self.0.change_disk(next))
            .await
    }

    async fn disk_top(&self) -> Result<PathBuf, VmmError> {
        self.0.disk_top().await
    }

    async fn agent(&self) -> Result<AgentChannel, VmmError> {
        self.0.agent().await
    }

    async fn ended(&self) -> Option<String> {
        self.0.ended().await
    }
}

#[async_trait]
impl Guests for Stepped<Arc<dyn Guests>> {
    async fn connect(
        &self,
        sandbox: SandboxId,
        machine: &Arc<dyn Machine>,
        within: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let connected = self.0.connect(sandbox, machine, within);
        let guest = self.step("guest: connect", connected).await?;
        Ok(Arc::new(Stepped(guest, self.1.clone())))
    }
}

#[async_trait]
impl Guest for Stepped<Arc<dyn Guest>> {
    fn boot_times(&self) -> BootTimes {
        self.0.boot_times()
    }

    async fn configure(&self, setup: Setup) -> Result<(), GuestError> {
        self.step("guest: configure", self.0.configure(setup)).await
    }

    async fn restored(&self, news: Restored) -> Result<(), GuestError> {
        self.step("guest: restored", self.0.restored(news)).await
    }

    async fn set_clock(&self) -> Result<(), GuestError> {
        self.step("guest: set clock", self.0.set_clock()).await
    }

    async fn sync(&self) -> Result<(), GuestError> {
        self.step("guest: sync", self.0.sync()).await
    }

    async fn shutdown(&self, grace: Duration) -> Result<(), GuestError> {
        self.step("guest: shutdown", self.0.shutdown(grace)).await
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn agent(&self) -> Option<&AgentClient> {
        self.0.agent()
    }
}
