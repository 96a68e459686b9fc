//! Machines without a process, on real disks: what the engine needs of a monitor and a guest for its own
//! part of a checkpoint. A machine's memory is what it read from its disk when it last stood still.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cowslip_engine::guest::{BootTimes, Guest, GuestError, Guests, Restored, Setup};
use cowslip_host::Site;
use cowslip_ledger::MonitorInfo;
use cowslip_model::{DiskLayer, SandboxId};
use cowslip_proto::AgentClient;
use cowslip_vmm::{AgentChannel, Machine, MachineConfig, RunState, Saved, Vmm, VmmError};

use crate::bench::{BLOCK, DISK, TEMPLATE_BLOCKS, open_device};

/// Length of a memory image in bytes: some pages more than one.
const IMAGE: usize = 64 << 10;
/// Where a guest writes as soon as it runs again after it stood still.
const SCRATCH: u64 = TEMPLATE_BLOCKS - 8;

/// The byte that fills each block of a disk.
pub(crate) type Blocks = Vec<u8>;

/// The blocks of a whole disk, each of which one byte fills.
pub(crate) fn blocks(disk: &File) -> Blocks {
    let mut bytes = vec![0; usize::try_from(DISK).unwrap()];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    let torn = |block: &&[u8]| block.iter().any(|byte| *byte != block[0]);
    let blocks: Vec<&[u8]> = bytes.chunks_exact(BLOCK as usize).collect();
    assert!(!blocks.iter().any(torn), "a block is torn");
    blocks.iter().map(|block| block[0]).collect()
}

/// The memory image of a machine that saw `blocks`.
pub(crate) fn image(blocks: &Blocks) -> Vec<u8> {
    blocks.iter().copied().cycle().take(IMAGE).collect()
}

/// The monitor, and the guests' side of it.
#[derive(Default, Clone)]
pub(crate) struct Machines(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    disk: Option<PathBuf>,
    stills: Vec<Blocks>,
}

impl Machines {
    /// The disk that the machine of last opened.
    pub(crate) fn disk(&self) -> File {
        open_device(self.0.lock().unwrap().disk.as_ref().unwrap())
    }

    /// What the disk held each time the machine stood still.
    pub(crate) fn stills(&self) -> Vec<Blocks> {
        self.0.lock().unwrap().stills.clone()
    }

    fn open(&self, config: &MachineConfig) -> Arc<dyn Machine> {
        let chain = config.disk.as_ref().unwrap();
        self.0.lock().unwrap().disk = Some(chain.top.path.clone());
        Arc::new(OnlyDisk(self.clone()))
    }
}

struct OnlyDisk(Machines);

#[async_trait]
impl Vmm for Machines {
    fn info(&self) -> MonitorInfo {
        MonitorInfo {
            kind: "none".to_owned(),
            version: "1".to_owned(),
            accelerator: "none".to_owned(),
            machine: "disk".to_owned(),
            cpu: None,
        }
    }

    fn restores(&self, _saved: &MonitorInfo) -> Result<(), VmmError> {
        Ok(())
    }

    async fn boot(
        &self,
        _site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        Ok(self.open(config))
    }

    async fn restore(
        &self,
        _site: &Site,
        config: &MachineConfig,
        path: &Path,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        let machine = self.open(config);
        let seen = image(&blocks(&self.disk()));
        assert!(
            std::fs::read(path).unwrap() == seen,
            "memory and disk are not of one instant (R26)"
        );
        Ok(machine)
    }

    async fn complete(&self, image: &Path, _: &[PathBuf], _: &Path) -> Result<(), VmmError> {
        panic!("{image:?} is whole")
    }

    async fn attach(
        &self,
        _site: &Site,
        config: &MachineConfig,
    ) -> Result<Arc<dyn Machine>, VmmError> {
        panic!("sandbox {} was taken for running", config.sandbox)
    }
}

#[async_trait]
impl Machine for OnlyDisk {
    async fn pause(&self) -> Result<(), VmmError> {
        let seen = blocks(&self.0.disk());
        self.0.0.lock().unwrap().stills.push(seen);
        Ok(())
    }

    /// The guest writes at once: none of it may get into what was frozen.
    async fn resume(&self) -> Result<(), VmmError> {
        let disk = self.0.disk();
        let count = self.0.stills().len();
        let byte = u8::try_from(0x80 + count).unwrap();
        for block in SCRATCH..TEMPLATE_BLOCKS {
            let written = disk.write_all_at(&[byte; BLOCK as usize], block * BLOCK);
            written.unwrap();
        }
        Ok(())
    }

    async fn state(&self) -> Result<RunState, VmmError> {
        Ok(RunState::Running)
    }

    async fn save(&self, path: &Path, _base: Option<&Path>) -> Result<Saved, VmmError> {
        let stills = self.0.stills();
        // In the page cache, where a monitor leaves it.
        std::fs::write(path, image(stills.last().unwrap())).unwrap();
        Ok(Saved {
            bytes: IMAGE as u64,
            changes_only: false,
        })
    }

    fn tracks_memory(&self) -> bool {
        false
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), VmmError> {
        panic!("the machine was asked to change to {next:?}")
    }

    async fn disk_top(&self) -> Result<PathBuf, VmmError> {
        panic!("the machine was asked for its disk")
    }

    async fn agent(&self) -> Result<AgentChannel, VmmError> {
        panic!("there is no agent")
    }

    async fn ended(&self) -> Option<String> {
        std::future::pending().await
    }
}

#[async_trait]
impl Guests for Machines {
    async fn connect(
        &self,
        _sandbox: SandboxId,
        _machine: &Arc<dyn Machine>,
        _within: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        Ok(Arc::new(NoGuest))
    }
}

struct NoGuest;

#[async_trait]
impl Guest for NoGuest {
    fn boot_times(&self) -> BootTimes {
        BootTimes::default()
    }

    async fn configure(&self, _setup: Setup) -> Result<(), GuestError> {
        Ok(())
    }

    async fn restored(&self, _news: Restored) -> Result<(), GuestError> {
        Ok(())
    }

    async fn set_clock(&self) -> Result<(), GuestError> {
        Ok(())
    }

    async fn sync(&self) -> Result<(), GuestError> {
        Ok(())
    }

    async fn shutdown(&self, _grace: Duration) -> Result<(), GuestError> {
        Ok(())
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn agent(&self) -> Option<&AgentClient> {
        None
    }
}
