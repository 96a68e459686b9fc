//! A state directory with a ledger, the real host, the `dm` backend and one template.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_engine::unwind::unwind;
use cowslip_host::dm::Control;
use cowslip_host::{Layout, LinuxHost, Site};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{LayerRecord, Ledger, Owner, Synchronous, TemplateRecord};
use cowslip_model::{ByteSize, DiskLayer, Durability, LayerId, SandboxId, TemplateId, Timestamp};
use cowslip_store::{Backend, LiveDisk, StoreError, Volumes, open};

pub(crate) const BLOCK: u64 = 4096;
/// The template: so many blocks, each filled with [`template_byte`].
pub(crate) const TEMPLATE_BLOCKS: u64 = 1024;
pub(crate) const DISK: u64 = TEMPLATE_BLOCKS * BLOCK;
pub(crate) const TEMPLATE: TemplateId = TemplateId::from_bits(7);

pub(crate) fn template_byte(block: u64) -> u8 {
    u8::try_from(1 + block % 251).unwrap()
}

pub(crate) struct Bench {
    pub(crate) site: Site,
    pub(crate) volumes: Arc<dyn Volumes>,
    state: PathBuf,
    /// Removed with the bench.
    _dir: Option<tempfile::TempDir>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        assert!(
            std::env::var_os("COWSLIP_IN_TEST_VM").is_some(),
            "these tests run in the test VM only: cargo xtask vm test"
        );
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        Self {
            _dir: Some(dir),
            ..Self::on(&state)
        }
    }

    /// One in this directory, with its template.
    pub(crate) fn on(state: &Path) -> Self {
        let bench = Self::over(state, Injector::default());
        let image = bench.site.layout.template_image(TEMPLATE);
        std::fs::create_dir(image.parent().unwrap()).unwrap();
        let content: Vec<u8> = (0..TEMPLATE_BLOCKS)
            .flat_map(|block| [template_byte(block); BLOCK as usize])
            .collect();
        std::fs::write(&image, content).unwrap();
        let stamp = bench.site.host.head(&image, 0).unwrap().unwrap().stamp;
        bench
            .site
            .ledger
            .write("put a template", Synchronous::Normal, |tx| {
                tx.put_template(&TemplateRecord {
                    id: TEMPLATE,
                    names: vec!["t".parse().unwrap()],
                    digest: "0".repeat(64),
                    size: ByteSize(DISK),
                    used: ByteSize(DISK),
                    entries: 1,
                    source: "directory".to_owned(),
                    config: None,
                    layers: None,
                    stamp: Some(stamp),
                    created_at: Timestamp(0),
                })
            })
            .unwrap();
        bench
    }

    /// The engine that comes after: the same directory, nothing in memory.
    pub(crate) fn over(state: &Path, injector: Injector) -> Self {
        let layout = Layout::new(state.to_owned(), state.join("run"));
        let boot = cowslip_host::process::boot_id();
        let ledger = Ledger::open(state, &boot, injector).unwrap();
        let host = LinuxHost::new(layout.clone(), ledger.instance()).unwrap();
        Self {
            site: Site {
                ledger,
                host: Arc::new(host),
                layout,
            },
            volumes: open(Backend::Dm, Durability::default()),
            state: state.to_owned(),
            _dir: None,
        }
    }

    pub(crate) fn again(&self, injector: Injector) -> Self {
        Self::over(&self.state, injector)
    }

    pub(crate) fn record(&self, bits: u64, parent: Option<&LayerRecord>, size: u64) -> LayerRecord {
        LayerRecord {
            id: LayerId::from_bits(bits),
            template: TEMPLATE,
            parent: parent.map(|layer| layer.id),
            format: self.volumes.format(),
            size: ByteSize(size),
            frozen: false,
            created_at: Timestamp(0),
        }
    }

    /// Writes a layer's record.
    pub(crate) fn put(&self, record: &LayerRecord) {
        self.site
            .ledger
            .write("put a layer", Synchronous::Normal, |tx| {
                tx.put_layer(record)
            })
            .unwrap();
    }

    pub(crate) async fn layer(&self, bits: u64, parent: Option<&LayerRecord>) -> LayerRecord {
        let record = self.record(bits, parent, DISK);
        self.put(&record);
        self.volumes
            .make_layer(&self.site, &record, parent)
            .await
            .unwrap();
        record
    }

    pub(crate) async fn disk(&self, sandbox: u64, layers: &[LayerRecord]) -> Disk {
        let id = SandboxId::from_bits(sandbox);
        let chain = self.volumes.activate(&self.site, id, layers).await.unwrap();
        Disk {
            id,
            file: open_device(&chain.top.path),
        }
    }

    /// Freezes `top` under a disk, which goes on in `next`.
    pub(crate) async fn freeze(&self, disk: &Disk, top: &LayerRecord, next: &LayerRecord) {
        let volumes = &self.volumes;
        let volume = Switch(disk.id);
        volumes
            .prepare_freeze(&self.site, top, next, &volume)
            .await
            .unwrap();
        assert!(!volumes.is_written(&self.site, next, &volume).await.unwrap());
        volumes
            .freeze(&self.site, top, next, &volume)
            .await
            .unwrap();
        assert!(volumes.is_written(&self.site, next, &volume).await.unwrap());
        volumes.settle(&self.site, disk.id).await.unwrap();
        self.put(&LayerRecord {
            frozen: true,
            ..top.clone()
        });
    }

    /// What the end of a machine does.
    pub(crate) async fn end(&self, disk: Disk) {
        let id = disk.id;
        drop(disk);
        unwind(&self.site, Owner::Machine(id)).unwrap();
        self.volumes.retire(&self.site).await.unwrap();
    }

    pub(crate) fn remove(&self, layers: &[&LayerRecord]) {
        for layer in layers {
            unwind(&self.site, Owner::Layer(layer.id)).unwrap();
        }
    }

    /// Devices of this instance, and loop devices over its files.
    pub(crate) fn devices(&self) -> Vec<String> {
        let mark = self.site.ledger.instance().to_string();
        let names = Control::open().unwrap().names().unwrap();
        let mut found: Vec<String> = names
            .into_iter()
            .filter(|name| name.contains(&mark))
            .collect();
        for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let file = std::fs::read_to_string(entry.path().join("loop/backing_file"));
            let file = file.unwrap_or_default();
            if Path::new(file.trim()).starts_with(&self.state) {
                found.push(file.trim().to_owned());
            }
        }
        found.sort();
        found
    }

    pub(crate) fn rows(&self) -> usize {
        self.site.ledger.read(|tx| tx.handles()).unwrap().len()
    }

    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.devices(), [""; 0]);
        assert_eq!(self.rows(), 0);
        let files = std::fs::read_dir(self.site.layout.state().join("layers")).unwrap();
        assert_eq!(files.count(), 0, "stores are left");
    }
}

/// A sandbox's open disk.
pub(crate) struct Disk {
    pub(crate) id: SandboxId,
    pub(crate) file: File,
}

pub(crate) fn open_device(path: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap())
        .open(path)
        .unwrap()
}

impl Disk {
    pub(crate) fn write(&self, block: u64, byte: u8) {
        self.file
            .write_all_at(&[byte; BLOCK as usize], block * BLOCK)
            .unwrap();
    }

    /// What the device says, not what the page cache above it remembers.
    pub(crate) fn read(&self, block: u64) -> u8 {
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = [0; BLOCK as usize];
        self.file.read_exact_at(&mut bytes, block * BLOCK).unwrap();
        assert!(
            bytes.iter().all(|byte| *byte == bytes[0]),
            "block {block} is torn"
        );
        bytes[0]
    }
}

/// A disk that is switched by device-mapper alone: the machine is not asked.
pub(crate) struct Switch(pub(crate) SandboxId);

#[async_trait]
impl LiveDisk for Switch {
    fn sandbox(&self) -> SandboxId {
        self.0
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), StoreError> {
        panic!("the machine was asked to change to {next:?}")
    }

    async fn disk_top(&self) -> Result<PathBuf, StoreError> {
        panic!("the machine was asked for its disk")
    }
}
