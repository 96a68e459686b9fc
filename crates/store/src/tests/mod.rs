//! A state directory with a ledger, the real host and one template.

mod agreement;
mod copy;
pub(crate) mod ext4;
mod flattening;
mod qcow2;
mod templates;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use crate::{Backend, Volumes, open};
use cowslip_host::{Layout, LinuxHost, Site};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{LayerRecord, Ledger, Owner, Synchronous, TemplateRecord};
use cowslip_model::{ByteSize, LayerId, TemplateId, Timestamp};

const TEMPLATE_BLOCKS: usize = 2048;
/// Size of the template's image, in bytes.
const TEMPLATE_SIZE: u64 = TEMPLATE_BLOCKS as u64 * 4096;

struct Bench {
    site: Site,
    volumes: Arc<dyn Volumes>,
    template: TemplateId,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(backend: Backend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let layout = Layout::new(state.clone(), dir.path().join("run"));
        let ledger = Ledger::open(&state, "boot", Injector::default()).unwrap();
        let host = LinuxHost::new(layout.clone(), ledger.instance()).unwrap();
        let template = TemplateId::from_bits(7);
        std::fs::create_dir(layout.template(template)).unwrap();
        // Each block of 4 KiB is filled with its number modulo 251, plus one.
        let blocks: Vec<[u8; 4096]> = (1..=251)
            .cycle()
            .take(TEMPLATE_BLOCKS)
            .map(|byte| [byte; 4096])
            .collect();
        let content = blocks.concat();
        let image = layout.template_image(template);
        std::fs::write(&image, &content).unwrap();
        let digest: String = <sha2::Sha256 as sha2::Digest>::digest(&content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let stamp = cowslip_host::head::head(&image, 0).unwrap().unwrap().stamp;
        ledger
            .write("put a template", Synchronous::Normal, |tx| {
                tx.put_template(&TemplateRecord {
                    id: template,
                    names: vec!["debian".parse().unwrap()],
                    digest,
                    size: ByteSize(TEMPLATE_SIZE),
                    used: ByteSize(TEMPLATE_SIZE),
                    entries: 1,
                    source: "directory".to_owned(),
                    config: None,
                    layers: None,
                    stamp: Some(stamp),
                    created_at: Timestamp(0),
                })
            })
            .unwrap();
        let site = Site {
            ledger,
            host: Arc::new(host),
            layout,
        };
        Self {
            site,
            volumes: open(backend, cowslip_model::Durability::default()),
            template,
            _dir: dir,
        }
    }

    /// A layer's record, written to the ledger.
    fn layer(&self, bits: u64, parent: Option<&LayerRecord>, size: u64) -> LayerRecord {
        let record = LayerRecord {
            id: LayerId::from_bits(bits),
            template: self.template,
            parent: parent.map(|layer| layer.id),
            format: self.volumes.format(),
            size: ByteSize(size),
            frozen: false,
            created_at: Timestamp(0),
        };
        self.site
            .ledger
            .write("put a layer", Synchronous::Normal, |tx| {
                tx.put_layer(&record)
            })
            .unwrap();
        record
    }

    /// A layer with its file.
    async fn made(&self, bits: u64, parent: Option<&LayerRecord>, size: u64) -> LayerRecord {
        let record = self.layer(bits, parent, size);
        self.volumes
            .make_layer(&self.site, &record, parent)
            .await
            .unwrap();
        record
    }

    fn path(&self, layer: &LayerRecord) -> PathBuf {
        self.volumes.path(&self.site, layer)
    }

    /// Handles held for a layer.
    fn handles(&self, layer: &LayerRecord) -> usize {
        self.site
            .ledger
            .read(|tx| tx.handles_of(Owner::Layer(layer.id)))
            .unwrap()
            .len()
    }
}

/// Runs a tool of qemu-utils; it must succeed.
fn tool(program: &str, arguments: &[&str], file: &Path) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .arg(file)
        .output()
        .unwrap_or_else(|error| panic!("{program} (package qemu-utils) is needed: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?} {}: {}{}",
        file.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
