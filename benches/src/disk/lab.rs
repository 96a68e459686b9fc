//! A state directory with a ledger, the real host, the `dm` backend and one template.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_engine::unwind::unwind;
use cowslip_host::{Layout, LinuxHost, Site};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{LayerRecord, Ledger, Owner, Synchronous, TemplateRecord};
use cowslip_model::{ByteSize, DiskLayer, Durability, LayerId, SandboxId, TemplateId, Timestamp};
use cowslip_store::{Backend, LiveDisk, StoreError, Volumes, open};
use tokio::runtime::Runtime;

use crate::Failure;

pub(crate) const MIB: u64 = 1 << 20;
const TEMPLATE: TemplateId = TemplateId::from_bits(7);

/// It, with a runtime to use it from.
pub(crate) struct Lab {
    pub(crate) site: Site,
    pub(crate) volumes: Arc<dyn Volumes>,
    pub(crate) runtime: Runtime,
    template: u64,
    directory: tempfile::TempDir,
}

impl Lab {
    /// One whose template has `size` bytes, none of them zero.
    pub(crate) fn new(size: u64) -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        let state = directory.path().join("state");
        std::fs::create_dir(&state)?;
        let layout = Layout::new(state.clone(), directory.path().join("run"));
        let boot = cowslip_host::process::boot_id();
        let ledger = Ledger::open(&state, &boot, Injector::default())?;
        let host = LinuxHost::new(layout.clone(), ledger.instance())?;
        let image = layout.template_image(TEMPLATE);
        std::fs::create_dir_all(image.parent().unwrap_or(&state))?;
        fill(&image, size)?;
        let record = TemplateRecord {
            id: TEMPLATE,
            names: vec!["t".parse()?],
            digest: "0".repeat(64),
            size: ByteSize(size),
            used: ByteSize(size),
            entries: 1,
            source: "directory".to_owned(),
            config: None,
            layers: None,
            stamp: cowslip_host::head::head(&image, 0)?.map(|head| head.stamp),
            created_at: Timestamp(0),
        };
        ledger.write::<_, cowslip_ledger::LedgerError>(
            "put a template",
            Synchronous::Normal,
            |tx| tx.put_template(&record),
        )?;
        Ok(Self {
            site: Site {
                ledger,
                host: Arc::new(host),
                layout,
            },
            volumes: open(Backend::Dm, Durability::Published),
            runtime: Runtime::new()?,
            template: size,
            directory,
        })
    }

    /// A directory for other files.
    pub(crate) fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The template's image.
    pub(crate) fn image(&self) -> PathBuf {
        self.site.layout.template_image(TEMPLATE)
    }

    /// A layer of the template's size, or of `size`.
    pub(crate) fn record(
        &self,
        bits: u64,
        parent: Option<&LayerRecord>,
        size: Option<u64>,
    ) -> LayerRecord {
        LayerRecord {
            id: LayerId::from_bits(bits),
            template: TEMPLATE,
            parent: parent.map(|layer| layer.id),
            format: self.volumes.format(),
            size: ByteSize(size.unwrap_or(self.template)),
            frozen: false,
            created_at: Timestamp(0),
        }
    }

    /// The file of a layer.
    pub(crate) async fn make(
        &self,
        layer: &LayerRecord,
        parent: Option<&LayerRecord>,
    ) -> Result<(), Failure> {
        Ok(self.volumes.make_layer(&self.site, layer, parent).await?)
    }

    /// The path of a sandbox's disk.
    pub(crate) async fn activate(
        &self,
        sandbox: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<PathBuf, Failure> {
        let chain = self.volumes.activate(&self.site, sandbox, layers).await?;
        Ok(chain.top.path)
    }

    /// What the end of a machine, and then the removal of its layers, do.
    pub(crate) async fn remove(
        &self,
        sandbox: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<(), Failure> {
        unwind(&self.site, Owner::Machine(sandbox))?;
        self.volumes.retire(&self.site).await?;
        for layer in layers.iter().rev() {
            unwind(&self.site, Owner::Layer(layer.id))?;
        }
        Ok(())
    }
}

/// A file of `size` bytes, each block another.
pub(crate) fn fill(path: &Path, size: u64) -> Result<(), Failure> {
    let file = File::create(path)?;
    let mut block = vec![0_u8; 1 << 20];
    for (index, at) in (0..size).step_by(1 << 20).enumerate() {
        for (byte, place) in block.iter_mut().zip(index..) {
            *byte = u8::try_from(1 + place % 251)?;
        }
        let length = usize::try_from((size - at).min(MIB))?;
        file.write_all_at(block.get(..length).unwrap_or_default(), at)?;
    }
    file.sync_all()?;
    Ok(())
}

/// A disk, opened as a monitor does: past the page cache.
pub(crate) struct Disk {
    file: File,
    /// Room for a page more, since what is written must begin at one.
    buffer: Vec<u8>,
}

const PAGE: usize = 4096;

impl Disk {
    /// Opens it; what is written is `piece` bytes at once, whole pages.
    pub(crate) fn open(path: &Path, piece: usize) -> Result<Self, Failure> {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits())?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        let buffer = vec![0x5a; piece + PAGE];
        Ok(Self { file, buffer })
    }

    /// Writes a piece at `at`.
    pub(crate) fn write(&self, at: u64) -> Result<(), Failure> {
        let begin = self.buffer.as_ptr().align_offset(PAGE);
        let end = begin + self.buffer.len() - PAGE;
        let piece = self.buffer.get(begin..end).unwrap_or_default();
        Ok(self.file.write_all_at(piece, at)?)
    }
}

/// A disk that is switched by device-mapper alone.
pub(crate) struct Switch(pub(crate) SandboxId);

#[async_trait]
impl LiveDisk for Switch {
    fn sandbox(&self) -> SandboxId {
        self.0
    }

    async fn change_disk(&self, _next: &DiskLayer) -> Result<(), StoreError> {
        Err(self.no_machine())
    }

    async fn disk_top(&self) -> Result<PathBuf, StoreError> {
        Err(self.no_machine())
    }
}

impl Switch {
    fn no_machine(&self) -> StoreError {
        StoreError::Swap {
            sandbox: self.0,
            message: "there is no machine".to_owned(),
        }
    }
}
