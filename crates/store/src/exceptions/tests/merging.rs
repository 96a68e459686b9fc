//! Stores over one another made one.

use std::fs::File;

use proptest::prelude::*;

use super::super::{CHUNK_SECTORS, Exceptions, Store, flatten, merge, store_size};
use super::writer::Writer;

const CHUNKS: u64 = 700;
const LENGTH: usize = 700 * 4096;
const DISK: u64 = CHUNKS * 4096;

fn whole(stores: &[&File]) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let template = tempfile::tempfile().unwrap();
    template.write_all_at(&vec![0xee; LENGTH], 0).unwrap();
    let stores: Vec<Store<'_>> = stores
        .iter()
        .map(|file| Store {
            file,
            disk_bytes: DISK,
        })
        .collect();
    let out = tempfile::tempfile().unwrap();
    flatten(&template, DISK, &stores, &out).unwrap();
    let mut bytes = vec![0; LENGTH];
    out.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The disk over the merged store is the disk over all of them, zeros over data included.
    #[test]
    fn one_store_says_what_all_say(
        layers in prop::collection::vec(
            prop::collection::btree_map(0..CHUNKS, 0_u8..4, 0..600), 1..5),
    ) {
        let files: Vec<File> = layers
            .iter()
            .map(|chunks| {
                let mut store = Writer::new(DISK, CHUNK_SECTORS);
                for (&old, &byte) in chunks {
                    store.put(old, &[byte; 4096]);
                }
                store.finish()
            })
            .collect();
        let files: Vec<&File> = files.iter().collect();
        let read: Vec<Exceptions> = files
            .iter()
            .map(|file| Exceptions::read(file, DISK).unwrap())
            .collect();
        let stores: Vec<(&File, &Exceptions)> = files.iter().copied().zip(&read).collect();
        let merged = tempfile::tempfile().unwrap();
        merge(&stores, &merged).unwrap();
        merged.set_len(store_size(DISK, CHUNK_SECTORS).unwrap()).unwrap();
        let found = Exceptions::read(&merged, DISK).unwrap();
        let mut named: Vec<u64> = layers.iter().flat_map(|chunks| chunks.keys().copied()).collect();
        named.sort_unstable();
        named.dedup();
        prop_assert_eq!(found.len(), named.len());
        prop_assert!(whole(&[&merged]) == whole(&files));
    }
}
