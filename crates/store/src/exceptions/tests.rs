//! A writer that makes what the kernel makes, and then damages it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

const CHUNK: u64 = 4096;
const STEP: usize = 4096;
const PAIRS: u64 = CHUNK / 16;

fn fresh(disk: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&blank_store(CHUNK_SECTORS), 0).unwrap();
    file.set_len(store_size(disk, CHUNK_SECTORS).unwrap())
        .unwrap();
    file
}

/// Where the kernel puts the pair and the data of the n-th exception.
fn places(index: u64) -> (u64, u64) {
    let (area, slot) = (index / PAIRS, index % PAIRS);
    let pairs = 1 + area * (PAIRS + 1);
    (pairs * CHUNK + slot * 16, pairs + 1 + slot)
}

fn put_pair(file: &File, index: u64, old: u64, new: u64) {
    let pair = [old.to_le_bytes(), new.to_le_bytes()].concat();
    file.write_all_at(&pair, places(index).0).unwrap();
}

/// A store with these chunks changed, each filled with a byte.
fn store(disk: u64, changes: &[(u64, u8)]) -> File {
    let file = fresh(disk);
    for (index, (old, byte)) in (0_u64..).zip(changes) {
        let new = places(index).1;
        file.write_all_at(&[*byte; STEP], new * CHUNK).unwrap();
        put_pair(&file, index, *old, new);
    }
    file
}

fn damage(file: &File, disk: u64) -> String {
    Exceptions::read(file, disk).unwrap_err().to_string()
}

#[test]
fn a_fresh_store_has_no_changes() {
    let file = fresh(1 << 20);
    let found = Exceptions::read(&file, 1 << 20).unwrap();
    assert_eq!((found.changed_bytes(), found.chunk_bytes()), (0, CHUNK));
}

#[test]
fn a_store_holds_a_rewrite_of_all_of_its_disk() {
    // covers R23: whole areas, one chunk less and one more
    for chunks in [1, PAIRS - 1, PAIRS, PAIRS + 1, 3 * PAIRS] {
        let disk = chunks * CHUNK;
        let changes: Vec<(u64, u8)> = (0..chunks).map(|old| (old, 7)).collect();
        let file = store(disk, &changes);
        let found = Exceptions::read(&file, disk).unwrap();
        assert_eq!(found.changed_bytes(), disk);
    }
}

#[test]
fn sizes_do_not_overflow() {
    // covers R6
    for disk in [u64::MAX, u64::MAX / 2, i64::MAX as u64] {
        assert!(store_size(disk, CHUNK_SECTORS).is_err(), "{disk}");
    }
    assert!(store_size(1 << 44, CHUNK_SECTORS).is_ok());
}

#[test]
fn each_damage_has_its_name() {
    let disk = 1 << 20;
    let with = |at: u64, bytes: &[u8]| {
        let file = store(disk, &[(3, 1), (4, 2)]);
        file.write_all_at(bytes, at).unwrap();
        damage(&file, disk)
    };
    assert!(with(0, b"QFI\xfb").contains("no exception store"));
    assert!(with(4, &0_u32.to_le_bytes()).contains("invalidated"));
    assert!(with(8, &2_u32.to_le_bytes()).contains("version 2"));
    for sectors in [0_u32, 4, 9, 4096] {
        assert!(with(12, &sectors.to_le_bytes()).contains("chunks of"));
    }
    let pair = |old: u64, new: u64| {
        let file = store(disk, &[(3, 1)]);
        put_pair(&file, 1, old, new);
        damage(&file, disk)
    };
    assert!(pair(256, 3).contains("changes chunk 256"));
    assert!(pair(5, 1).contains("no data can be"), "a chunk of pairs");
    assert!(pair(5, 1 + PAIRS + 1).contains("no data can be"));
    assert!(pair(5, 1 << 40).contains("truncated"));
    assert!(pair(5, u64::MAX).contains("truncated"));
    assert!(pair(3, 3).contains("chunk 3 twice"), "the disk's chunk");
    assert!(pair(5, 2).contains("chunk 2 twice"), "the store's chunk");
    for length in [0, 15, 4096, 8191] {
        let short = store(disk, &[(3, 1)]);
        short.set_len(length).unwrap();
        assert!(damage(&short, disk).contains("truncated"), "{length}");
    }
}

#[test]
fn the_highest_store_wins_and_zeros_are_holes() {
    let disk = 64 * CHUNK;
    let template = tempfile::tempfile().unwrap();
    template.write_all_at(&[9; 32 * STEP], 0).unwrap();
    let low = store(disk, &[(1, 1), (2, 1), (3, 1), (40, 1)]);
    let high = store(disk, &[(2, 2), (3, 0), (63, 3)]);
    let (low_map, high_map) = (
        Exceptions::read(&low, disk).unwrap(),
        Exceptions::read(&high, disk).unwrap(),
    );
    let out = tempfile::tempfile().unwrap();
    let done = flatten(
        &template,
        disk,
        &[(&low, &low_map), (&high, &high_map)],
        &out,
    )
    .unwrap();
    assert_eq!((done.written, done.zeroed), (4 * CHUNK, CHUNK));
    assert_eq!(out.metadata().unwrap().len(), disk);
    let byte = |chunk: u64| {
        let mut bytes = vec![0; STEP];
        out.read_exact_at(&mut bytes, chunk * CHUNK).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{chunk}");
        bytes[0]
    };
    let seen: Vec<u8> = [0, 1, 2, 3, 4, 33, 40, 63].map(byte).to_vec();
    assert_eq!(seen, [9, 1, 2, 0, 9, 0, 1, 3]);
    let hole = rustix::fs::seek(&out, rustix::fs::SeekFrom::Hole(3 * CHUNK)).unwrap();
    assert_eq!(hole, 3 * CHUNK);
}

proptest! {
    /// Whatever stands in a store: it is read or refused, and what is read can be used.
    #[test]
    fn no_store_is_too_strange(flips in prop::collection::vec((0_u64..20_000, any::<u8>()), 0..8), cut in 0_u64..400_000) {
        let disk = 300 * CHUNK;
        let changes: Vec<(u64, u8)> = (0..270).map(|old| (old, 1)).collect();
        let file = store(disk, &changes);
        for (at, byte) in flips {
            file.write_all_at(&[byte], at).unwrap();
        }
        if cut < 200_000 {
            file.set_len(cut * 8).unwrap();
        }
        if let Ok(found) = Exceptions::read(&file, disk) {
            let out = tempfile::tempfile().unwrap();
            let template = tempfile::tempfile().unwrap();
            flatten(&template, disk, &[(&file, &found)], &out).unwrap();
        }
    }

    /// A disk is what was written last to each of its chunks.
    #[test]
    fn flattening_is_replaying(layers in prop::collection::vec(prop::collection::btree_map(0_u64..40, any::<u8>(), 0..20), 1..5)) {
        let disk = 40 * CHUNK;
        let template = tempfile::tempfile().unwrap();
        template.set_len(disk).unwrap();
        let mut wanted = vec![0_u8; 40];
        let mut stores = Vec::new();
        for layer in &layers {
            let changes: Vec<(u64, u8)> = layer.iter().map(|(old, byte)| (*old, *byte)).collect();
            for (old, byte) in &changes {
                wanted[usize::try_from(*old).unwrap()] = *byte;
            }
            let file = store(disk, &changes);
            let map = Exceptions::read(&file, disk).unwrap();
            stores.push((file, map));
        }
        let out = tempfile::tempfile().unwrap();
        let pairs: Vec<_> = stores.iter().map(|(file, map)| (file, map)).collect();
        flatten(&template, disk, &pairs, &out).unwrap();
        for (chunk, byte) in (0_u64..).zip(&wanted) {
            let mut found = [0; 1];
            out.read_exact_at(&mut found, chunk * CHUNK + 77).unwrap();
            prop_assert_eq!(found[0], *byte);
        }
    }
}
