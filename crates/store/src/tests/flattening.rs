//! Flattened volumes against what QEMU's own reader makes of them.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use cowslip_ledger::{LayerRecord, Owner, Synchronous};
use cowslip_model::{ByteSize, TemplateId};
use proptest::prelude::*;

use super::ext4::{Ages, SIZE, assert_third};
use super::qcow2::io;
use super::{Bench, TEMPLATE_SIZE, tool};
use crate::exceptions::CHUNK_SECTORS;
use crate::exceptions::tests::writer::Writer;
use crate::{Backend, FlattenStats, StoreError};

const OUT: Owner = Owner::Template(TemplateId::from_bits(8));

impl Bench {
    /// Where a flattened image goes.
    fn out(&self) -> PathBuf {
        let dir = self.site.layout.template(TemplateId::from_bits(8));
        std::fs::create_dir_all(&dir).unwrap();
        dir.join("image.ext4")
    }

    async fn flatten(&self, layers: &[LayerRecord]) -> Result<FlattenStats, StoreError> {
        let out = self.out();
        self.volumes.flatten(&self.site, layers, OUT, &out).await
    }

    fn out_handles(&self) -> usize {
        self.site
            .ledger
            .read(|tx| tx.handles_of(OUT))
            .unwrap()
            .len()
    }

    /// The disk as QEMU reads it.
    fn converted(&self, top: &LayerRecord) -> Vec<u8> {
        let raw = self.site.layout.state().join("converted");
        let path = self.path(top);
        let from = path.to_str().unwrap();
        tool(
            "qemu-img",
            &["convert", "-f", "qcow2", "-O", "raw", from],
            &raw,
        );
        std::fs::read(raw).unwrap()
    }
}

#[tokio::test]
async fn a_chain_is_flattened_to_what_qemu_reads() {
    let bench = Bench::new(Backend::Qcow2);
    let base = bench.made(1, None, TEMPLATE_SIZE).await;
    let middle = bench.made(2, Some(&base), TEMPLATE_SIZE).await;
    let top = bench.made(3, Some(&middle), 3 * TEMPLATE_SIZE).await;
    for (layer, command) in [
        (&base, "write -P 0xaa 0 300k"),
        (&base, "write -z 1M 64k"),
        (&middle, "write -P 0xbb 100k 4k"),
        (&middle, "write -P 0xbc 101000 512"),
        (&middle, "discard 2M 256k"),
        (&top, "write -P 0xcc 1M 8k"),
        (&top, "write -z 3M 1M"),
        (&top, "write -P 0xdd 23M 4k"),
    ] {
        io(&bench, layer, command);
    }
    let layers = [base.clone(), middle.clone(), top.clone()];
    let stats = bench.flatten(&layers).await.unwrap();
    assert!(std::fs::read(bench.out()).unwrap() == bench.converted(&top));
    assert!(stats.written < stats.changed, "{stats:?}");
    let found = std::fs::metadata(bench.out()).unwrap();
    assert!(found.blocks() * 512 < TEMPLATE_SIZE, "zeros were written");
    assert_eq!(found.mode() & 0o777, 0o600);
    assert_eq!(bench.out_handles(), 1);

    let changed = async |layer| {
        let changes = bench.volumes.changes(&bench.site, layer).await.unwrap();
        changes.bytes()
    };
    assert_eq!(changed(&base).await, (300 + 64) << 10);
    assert_eq!(changed(&middle).await, (8 + 256) << 10);
    assert_eq!(changed(&top).await, (8 + 1024 + 4) << 10);
}

#[tokio::test]
async fn overlays_of_other_shapes_are_read() {
    // Neither the cluster size nor subclusters are taken for granted; compression is refused.
    for options in [
        "cluster_size=65536",
        "cluster_size=4096",
        "cluster_size=2M,extended_l2=on",
    ] {
        let bench = Bench::new(Backend::Qcow2);
        let layer = bench.made(1, None, TEMPLATE_SIZE).await;
        let path = bench.path(&layer);
        let backing = "../templates/0000000000000007/image.ext4";
        let size = TEMPLATE_SIZE.to_string();
        std::fs::remove_file(&path).unwrap();
        let output = std::process::Command::new("qemu-img")
            .args([
                "create", "-q", "-f", "qcow2", "-o", options, "-F", "raw", "-b", backing,
            ])
            .arg(&path)
            .arg(&size)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        io(&bench, &layer, "write -P 0x11 0 5000");
        io(&bench, &layer, "write -z 2M 512k");
        io(&bench, &layer, "write -P 0x12 7M 100k");
        bench.flatten(std::slice::from_ref(&layer)).await.unwrap();
        assert!(
            std::fs::read(bench.out()).unwrap() == bench.converted(&layer),
            "{options}"
        );
    }
}

#[tokio::test]
async fn damaged_and_foreign_overlays_are_refused_by_name_and_leave_nothing() {
    // covers R24
    let refused = async |why: &str, spoil: &dyn Fn(&Bench, &LayerRecord)| {
        let bench = Bench::new(Backend::Qcow2);
        let layer = bench.made(1, None, TEMPLATE_SIZE).await;
        io(&bench, &layer, "write -P 0x11 0 256k");
        spoil(&bench, &layer);
        let error = bench
            .flatten(std::slice::from_ref(&layer))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains(why),
            "expected \"{why}\" in: {error}"
        );
        assert!(error.to_string().contains(&layer.id.to_string()), "{error}");
        assert!(!bench.out().exists() && bench.out_handles() == 0);
    };
    let put = |bench: &Bench, layer: &LayerRecord, at: u64, bytes: &[u8]| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(bench.path(layer))
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    };
    let l1 = 3 << 17;
    let l2_of = |bench: &Bench, layer: &LayerRecord| {
        let bytes = std::fs::read(bench.path(layer)).unwrap();
        let entry = &bytes[l1..l1 + 8];
        u64::from_be_bytes(entry.try_into().unwrap()) & !(1 << 63)
    };
    refused("compressed clusters", &|bench, layer| {
        io(bench, layer, "write -c -P 0x13 1M 128k");
    })
    .await;
    refused("a table lies at", &|bench, layer| {
        put(bench, layer, l1 as u64, &(1_u64 << 40).to_be_bytes());
    })
    .await;
    refused("is no entry of the first table", &|bench, layer| {
        put(bench, layer, l1 as u64, &1_u64.to_be_bytes());
    })
    .await;
    refused("a cluster lies at 0x0", &|bench, layer| {
        put(
            bench,
            layer,
            l2_of(bench, layer),
            &(1_u64 << 63).to_be_bytes(),
        );
    })
    .await;
    refused("is no entry of a second table", &|bench, layer| {
        put(bench, layer, l2_of(bench, layer), &3_u64.to_be_bytes());
    })
    .await;
    refused("is no bitmap of subclusters", &|bench, layer| {
        put(bench, layer, l2_of(bench, layer) + 8, &[0xff; 8]);
    })
    .await;
    refused("is cut off", &|bench, layer| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(bench.path(layer))
            .unwrap();
        file.set_len(1000).unwrap();
    })
    .await;
}

#[tokio::test]
async fn one_table_is_not_read_for_two_parts_of_the_disk() {
    let bench = Bench::new(Backend::Qcow2);
    let layer = bench.made(1, None, 4 << 30).await;
    io(&bench, &layer, "write -P 0x11 0 4k");
    let bytes = std::fs::read(bench.path(&layer)).unwrap();
    let l1 = 3 << 17;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.path(&layer))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[l1..l1 + 8], l1 as u64 + 8).unwrap();
    let error = bench
        .flatten(std::slice::from_ref(&layer))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("used twice"), "{error}");
}

/// Writes blocks of 4 KiB to a fresh layer as what writes such layers would.
fn write_blocks(bench: &Bench, layer: &LayerRecord, blocks: &[(u64, Vec<u8>)]) {
    let path = bench.path(layer);
    if bench.volumes.backend() == Backend::Qcow2 {
        let content = bench.site.layout.state().join("content");
        for (block, bytes) in blocks {
            std::fs::write(&content, bytes).unwrap();
            let from = content.display();
            io(
                bench,
                layer,
                &format!("write -s {from} {} 4k", block * 4096),
            );
        }
        return;
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    if bench.volumes.backend() == Backend::Dm {
        let mut store = Writer::on(file, CHUNK_SECTORS);
        for (block, bytes) in blocks {
            store.put(*block, bytes);
        }
        return;
    }
    for (block, bytes) in blocks {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, block * 4096).unwrap();
    }
}

#[tokio::test]
async fn a_flattened_file_system_is_clean_and_the_newest() {
    // covers R24: overlays, copies, and exception stores without a device
    let ages = Ages::new();
    for backend in [Backend::Qcow2, Backend::Copy, Backend::Dm] {
        let bench = Bench::new(backend);
        std::fs::copy(
            &ages.paths[0],
            bench.site.layout.template_image(bench.template),
        )
        .unwrap();
        let mut template = bench
            .site
            .ledger
            .read(|tx| tx.template(bench.template))
            .unwrap()
            .unwrap();
        template.size = ByteSize(SIZE);
        let image = bench.site.layout.template_image(bench.template);
        let head = bench.site.host.head(&image, 0).unwrap().unwrap();
        template.stamp = Some(head.stamp);
        bench
            .site
            .ledger
            .write("resize", Synchronous::Normal, |tx| {
                tx.put_template(&template)
            })
            .unwrap();
        let mut layers: Vec<LayerRecord> = Vec::new();
        for age in [1, 2] {
            let parent = layers.last().cloned();
            let layer = bench.made(age as u64, parent.as_ref(), SIZE).await;
            write_blocks(&bench, &layer, &ages.changed(age));
            layers.push(layer);
        }
        let before = layers
            .iter()
            .map(|layer| std::fs::read(bench.path(layer)).unwrap());
        let before: Vec<_> = before.collect();
        bench.flatten(&layers).await.unwrap();
        assert!(std::fs::read(bench.out()).unwrap() == std::fs::read(&ages.paths[2]).unwrap());
        assert_third(&bench.out());
        for (layer, before) in layers.iter().zip(before) {
            assert!(
                std::fs::read(bench.path(layer)).unwrap() == before,
                "a layer was written"
            );
        }
        let changes = bench
            .volumes
            .changes(&bench.site, &layers[0])
            .await
            .unwrap();
        assert_eq!(changes.bytes(), 4096 * ages.changed(1).len() as u64);
    }
}

#[tokio::test]
async fn nothing_is_flattened_to_nowhere_or_over_what_is_there() {
    let bench = Bench::new(Backend::Qcow2);
    let layer = bench.made(1, None, TEMPLATE_SIZE).await;
    bench.flatten(&[]).await.unwrap_err();
    let taken = bench.out();
    std::fs::write(&taken, b"somebody's").unwrap();
    bench
        .flatten(std::slice::from_ref(&layer))
        .await
        .unwrap_err();
    assert_eq!(std::fs::read(&taken).unwrap(), b"somebody's");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Random writes, zeros and discards in random layers: the same bytes as QEMU reads.
    #[test]
    fn any_chain_is_flattened_to_what_qemu_reads(
        layers in prop::collection::vec(
            prop::collection::vec((0_u8..4, 0_u64..2048, 1_u64..60, 0_u64..2), 0..6), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new(Backend::Qcow2);
            let mut chain: Vec<LayerRecord> = Vec::new();
            for (bits, writes) in (1..).zip(layers) {
                let parent = chain.last().cloned();
                let layer = bench.made(bits, parent.as_ref(), TEMPLATE_SIZE).await;
                for (kind, block, blocks, odd) in writes {
                    let at = block * 4096 + odd * 512;
                    let length = (blocks * 4096 + odd * 1024).min(TEMPLATE_SIZE - at);
                    let command = match kind {
                        0 | 1 => format!("write -P {} {at} {length}", bits * 16),
                        2 => format!("write -z {at} {length}"),
                        _ => format!("discard {at} {length}"),
                    };
                    io(&bench, &layer, &command);
                }
                chain.push(layer);
            }
            bench.flatten(&chain).await.unwrap();
            let top = chain.last().unwrap();
            assert!(std::fs::read(bench.out()).unwrap() == bench.converted(top));
        });
    }
}
