//! Whole copies.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::{Bench, TEMPLATE_SIZE};
use crate::{Backend, FreezeStyle, LiveDisk, StoreError};
use async_trait::async_trait;
use cowslip_ledger::LayerRecord;
use cowslip_model::{DiskFormat, DiskLayer, SandboxId};

const OWNER: SandboxId = SandboxId::from_bits(1);

/// A machine that must not be asked: it goes on where it was.
struct Untouched;

#[async_trait]
impl LiveDisk for Untouched {
    fn sandbox(&self) -> SandboxId {
        OWNER
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), StoreError> {
        panic!("asked to change to {next:?}")
    }

    async fn disk_top(&self) -> Result<PathBuf, StoreError> {
        panic!("asked for its top")
    }
}

fn write(bench: &Bench, layer: &LayerRecord, at: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.path(layer))
        .unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn read(bench: &Bench, layer: &LayerRecord, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    std::fs::File::open(bench.path(layer))
        .unwrap()
        .read_exact_at(&mut bytes, at)
        .unwrap();
    bytes
}

#[tokio::test]
async fn a_copy_has_the_templates_bytes_and_its_own_size() {
    let bench = Bench::new(Backend::Copy);
    let size = 64 * TEMPLATE_SIZE;
    let layer = bench.made(1, None, size).await;
    let metadata = std::fs::metadata(bench.path(&layer)).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (size, 0o600));
    assert!(
        metadata.blocks() * 512 < 2 * TEMPLATE_SIZE,
        "the space behind the template is a hole"
    );
    let image = std::fs::read(bench.site.layout.template_image(bench.template)).unwrap();
    assert!(read(&bench, &layer, 0, image.len()) == image);
    assert_eq!(read(&bench, &layer, TEMPLATE_SIZE, 4096), [0; 4096]);

    let chain = bench
        .volumes
        .activate(&bench.site, OWNER, std::slice::from_ref(&layer))
        .await
        .unwrap();
    assert!(chain.frozen.is_empty());
    assert_eq!(
        chain.top,
        DiskLayer {
            path: bench.path(&layer),
            format: DiskFormat::Raw
        }
    );
    assert_eq!(chain.size, size);
    assert_eq!(bench.handles(&layer), 1);
}

#[tokio::test]
async fn a_freeze_sets_a_copy_aside_and_the_machine_goes_on() {
    // covers R25, R26
    let bench = Bench::new(Backend::Copy);
    assert_eq!(
        bench.volumes.freeze_style(bench.volumes.format()),
        FreezeStyle::SetAside
    );
    let top = bench.made(1, None, TEMPLATE_SIZE).await;
    write(&bench, &top, 4096, b"before");
    let frozen = bench.layer(2, None, TEMPLATE_SIZE);
    bench
        .volumes
        .freeze(&bench.site, &top, &frozen, &Untouched)
        .await
        .unwrap();
    bench.volumes.sync(&bench.site, &frozen).await.unwrap();
    write(&bench, &top, 4096, b"after!");
    let fork = bench.made(3, Some(&frozen), 2 * TEMPLATE_SIZE).await;
    write(&bench, &fork, 4096, b"forked");
    assert_eq!(read(&bench, &frozen, 4096, 6), b"before");
    assert_eq!(read(&bench, &top, 4096, 6), b"after!");
    assert_eq!(read(&bench, &fork, 4096, 6), b"forked");
}

#[tokio::test]
async fn damaged_sources_are_refused() {
    let bench = Bench::new(Backend::Copy);
    let layer = bench.made(1, None, TEMPLATE_SIZE).await;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.path(&layer))
        .unwrap();
    file.set_len(4096).unwrap();
    let error = bench
        .volumes
        .activate(&bench.site, OWNER, std::slice::from_ref(&layer))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("has 4096 bytes"), "{error}");
    let child = bench.layer(2, Some(&layer), TEMPLATE_SIZE);
    bench
        .volumes
        .make_layer(&bench.site, &child, Some(&layer))
        .await
        .unwrap_err();
    assert!(!bench.path(&child).exists());

    for (bits, size) in [(3, TEMPLATE_SIZE - 512), (4, TEMPLATE_SIZE + 1)] {
        let odd = bench.layer(bits, None, size);
        let error = bench
            .volumes
            .make_layer(&bench.site, &odd, None)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Size { .. }), "{error}");
    }
    std::fs::remove_file(bench.site.layout.template_image(bench.template)).unwrap();
    let gone = bench.layer(5, None, TEMPLATE_SIZE);
    let error = bench
        .volumes
        .make_layer(&bench.site, &gone, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("import it again"), "{error}");
}
