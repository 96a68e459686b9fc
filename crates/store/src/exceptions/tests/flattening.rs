//! Stores written out with their template.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;

use super::super::{CHUNK_SECTORS, Damage, FlattenError, Store, flatten};
use super::writer::Writer;
use crate::tests::ext4::{Ages, SIZE, assert_third};

fn new_file(dir: &tempfile::TempDir, name: &str) -> File {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join(name))
        .unwrap()
}

#[test]
fn a_flattened_file_system_is_clean_and_the_newest() {
    // covers R24
    let ages = Ages::new();
    let mut stores = Vec::new();
    for age in [1, 2] {
        let mut store = Writer::new(SIZE, CHUNK_SECTORS);
        for (block, content) in ages.changed(age) {
            store.put(block, &content);
        }
        stores.push(store.finish());
    }
    let stores: Vec<_> = stores
        .iter()
        .map(|file| Store {
            file,
            disk_bytes: SIZE,
        })
        .collect();
    let template = File::open(&ages.paths[0]).unwrap();
    let before = std::fs::read(&ages.paths[0]).unwrap();
    let out = new_file(&ages.dir, "flat");
    let stats = flatten(&template, SIZE, &stores, &out).unwrap();
    let flat = ages.dir.path().join("flat");
    assert!(std::fs::read(&flat).unwrap() == std::fs::read(&ages.paths[2]).unwrap());
    assert!(
        std::fs::read(&ages.paths[0]).unwrap() == before,
        "the template was written"
    );
    assert!(
        stats.written <= stats.changed && stats.changed < 8 << 20,
        "{stats:?}"
    );
    assert_third(&flat);
}

#[test]
fn zeros_become_holes_and_a_disk_may_grow() {
    let dir = tempfile::tempdir().unwrap();
    let template = new_file(&dir, "template");
    let small = 1 << 20;
    template.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    let mut base = Writer::new(small, CHUNK_SECTORS);
    for block in 0..128 {
        base.put(block, &[0]);
    }
    let large = 64 << 20;
    let mut top = Writer::new(large, CHUNK_SECTORS);
    top.put(3, &[3; 4096]);
    top.put(large / 4096 - 1, &[4; 4096]);
    let (base, top) = (base.finish(), top.finish());
    let stores = [
        Store {
            file: &base,
            disk_bytes: small,
        },
        Store {
            file: &top,
            disk_bytes: large,
        },
    ];
    let out = new_file(&dir, "flat");
    let stats = flatten(&template, large, &stores, &out).unwrap();
    assert_eq!((stats.changed, stats.written), (129 * 4096, 8192));
    let mut expected = vec![0; 64 << 20];
    expected[128 * 4096..1 << 20].fill(1);
    expected[3 * 4096..4 * 4096].fill(3);
    expected[(64 << 20) - 4096..].fill(4);
    assert!(std::fs::read(dir.path().join("flat")).unwrap() == expected);
    let blocks = out.metadata().unwrap().blocks() * 512;
    assert!(blocks <= (1 << 19) + 65536, "{blocks} bytes of the disk");
}

#[test]
fn a_damaged_store_is_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let template = new_file(&dir, "template");
    template.set_len(1 << 20).unwrap();
    let good = Writer::new(1 << 20, CHUNK_SECTORS).finish();
    let mut bad = Writer::new(1 << 20, CHUNK_SECTORS);
    bad.write(4, &[0]);
    let bad = bad.finish();
    let stores = [&good, &bad].map(|file| Store {
        file,
        disk_bytes: 1 << 20,
    });
    let out = new_file(&dir, "flat");
    let error = flatten(&template, 1 << 20, &stores, &out).unwrap_err();
    assert!(
        matches!(
            error,
            FlattenError::Store {
                index: 1,
                damage: Damage::Invalidated
            }
        ),
        "{error}"
    );
    assert_eq!(out.metadata().unwrap().len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the layers and their chunk sizes: the same as writing one over the other.
    #[test]
    fn flattening_is_writing_in_order(
        tail in 0_u32..16,
        layers in prop::collection::vec(
            (
                prop::sample::select(vec![8_u32, 32]),
                prop::collection::btree_map(0_u32..256, 0_u8..4, 0..60),
            ),
            0..4,
        ),
    ) {
        let length = 255 * 4096 + 256 * (tail as usize + 1);
        let dir = tempfile::tempdir().unwrap();
        let template = new_file(&dir, "template");
        let mut expected: Vec<u8> = (0..5_u8).cycle().take(256).flat_map(|byte| [byte; 4096]).collect();
        expected.truncate(length);
        template.write_all_at(&expected, 0).unwrap();
        let disk = length as u64;
        let mut files = Vec::new();
        for (sectors, changes) in layers {
            let chunk = sectors as usize * 512;
            let mut store = Writer::new(disk, sectors);
            for (old, byte) in changes {
                let at = old as usize * chunk;
                if at < length {
                    store.put(old.into(), &vec![byte; chunk]);
                    expected[at..length.min(at + chunk)].fill(byte);
                }
            }
            files.push(store.finish());
        }
        let stores: Vec<_> = files
            .iter()
            .map(|file| Store { file, disk_bytes: disk })
            .collect();
        let out = new_file(&dir, "flat");
        flatten(&template, disk, &stores, &out).unwrap();
        prop_assert!(std::fs::read(dir.path().join("flat")).unwrap() == expected);
    }
}
