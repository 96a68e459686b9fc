//! Stores written as the kernel writes them, and damaged ones.

mod damages;
mod flattening;
mod merging;
mod sizes;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::{CHUNK_SECTORS, Exceptions, blank_store, store_size};
use writer::Writer;

const MIB: u64 = 1 << 20;

#[test]
fn a_fresh_store_is_valid_and_empty() {
    for sectors in [8, 16, 128, 2048] {
        let file = tempfile::tempfile().unwrap();
        let blank = blank_store(sectors).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &blank, 0).unwrap();
        file.set_len(store_size(MIB, sectors).unwrap()).unwrap();
        let found = Exceptions::read(&file, MIB).unwrap();
        assert!(found.is_empty());
        assert_eq!(found.next_free(), 2);
        assert_eq!(found.changed_bytes(), 0);
        assert_eq!(found.chunk_sectors(), sectors);
    }
}

#[test]
fn a_full_rewrite_fits_with_slack_and_is_read_whole() {
    // covers R23: 100 % of the disk, with disks that end inside a chunk and at the end of an area.
    for disk in [4096 * 256, 4096 * 255, 4096 * 257, 4096 * 1024 + 512] {
        let mut store = Writer::new(disk, CHUNK_SECTORS);
        for old in (0..disk.div_ceil(4096)).rev() {
            store.put(old, &[7; 4096]);
        }
        let file = store.finish();
        let found = Exceptions::read(&file, disk).unwrap();
        assert_eq!(found.changed_bytes(), disk);
        assert_eq!(found.len() as u64, disk.div_ceil(4096));
        assert!(found.next_free() * 4096 < file.metadata().unwrap().len());
    }
}

#[test]
fn a_store_of_a_huge_disk_is_a_few_blocks_and_is_read_at_once() {
    let disk = 8 << 40;
    let mut store = Writer::new(disk, CHUNK_SECTORS);
    store.put(disk / 4096 - 1, &[1; 4096]);
    let file = store.finish();
    assert!(file.metadata().unwrap().len() > disk);
    assert!(file.metadata().unwrap().blocks() * 512 <= 64 << 10);
    let found = Exceptions::read(&file, disk).unwrap();
    assert_eq!(
        found.iter().collect::<Vec<_>>(),
        [(disk / 4096 - 1, 2)],
        "the last chunk is the only one"
    );
}

#[test]
fn no_free_chunk_is_one_with_pairs() {
    let mut store = Writer::new(MIB, CHUNK_SECTORS);
    for old in 0..256 {
        store.put(old, &[1; 4096]);
    }
    let found = Exceptions::read(&store.finish(), MIB).unwrap();
    // 2 … 257 are full, 258 has the pairs of the next area.
    assert_eq!(found.next_free(), 259);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is written is read, whatever the chunk size and order, with chunks lost in between (as
    /// after a power cut).
    #[test]
    fn what_is_written_is_read(
        sectors in prop::sample::select(vec![8_u32, 16, 64]),
        tail in 0_u64..8,
        changes in prop::collection::vec((0_u64..900, 0_u64..20), 0..900),
    ) {
        let chunk = u64::from(sectors) * 512;
        let disk = 899 * chunk + 512 * (1 + tail);
        let mut store = Writer::new(disk, sectors);
        let mut expected = BTreeMap::new();
        let mut lost = 0;
        for (old, odd) in changes {
            if odd == 0 && lost < 100 {
                lost += 1;
                store.lose();
            }
            expected.entry(old).or_insert_with(|| store.put(old, &[1; 16]));
        }
        let last = store.next_free();
        let file = store.finish();
        let found = Exceptions::read(&file, disk).unwrap();
        let expected: Vec<_> = expected.into_iter().collect();
        prop_assert!(found.next_free() <= last);
        let partial = expected.iter().any(|&(old, _)| old == 899);
        let short = if partial { chunk - 512 * (1 + tail) } else { 0 };
        prop_assert_eq!(found.changed_bytes(), expected.len() as u64 * chunk - short);
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    }

    /// No bit of header or pairs can be turned so that the reader fails to come to an end, or says
    /// something of chunks that are not there.
    #[test]
    fn turned_bits_are_refused_or_stay_inside(bit in 0_usize..(16 + 300 * 16) * 8) {
        let disk = 400 * 4096;
        let mut store = Writer::new(disk, CHUNK_SECTORS);
        for old in 0..300 {
            store.put(old, &[1; 16]);
        }
        let at = match bit / 8 {
            head @ 0..16 => head as u64,
            pair @ 16..4112 => 4096 + pair as u64 - 16,
            pair => 258 * 4096 + pair as u64 - 4112,
        };
        store.turn(at, 1 << (bit % 8));
        let file = store.finish();
        let chunks = file.metadata().unwrap().len() / 4096;
        if let Ok(found) = Exceptions::read(&file, disk) {
            prop_assert!(found.iter().all(|(old, new)| old < 400 && new < chunks && new >= 2));
            // Only the number of a chunk can be another; none comes or goes.
            prop_assert_eq!(found.len(), 300);
        }
    }
}
