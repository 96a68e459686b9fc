//! Every way a store can be damaged, each with its own error.

use super::super::{CHUNK_SECTORS, Damage, Exceptions};
use super::writer::Writer;
use crate::StoreError;
use cowslip_model::LayerId;

/// 400 chunks, so that a store of it has two areas.
const DISK: u64 = 400 * 4096;

/// What the reader makes of a store of 300 exceptions that `spoil` had in its hands.
fn spoilt(spoil: impl FnOnce(&mut Writer)) -> Damage {
    let mut store = Writer::new(DISK, CHUNK_SECTORS);
    for old in 0..300 {
        store.put(old, &[1; 16]);
    }
    spoil(&mut store);
    Exceptions::read(&store.finish(), DISK).unwrap_err()
}

macro_rules! damaged {
    ($spoil:expr, $pattern:pat, $words:literal) => {
        let damage = spoilt($spoil);
        assert!(matches!(damage, $pattern), "{damage:?}");
        assert!(damage.to_string().contains($words), "{damage}");
    };
}

#[test]
fn headers() {
    damaged!(
        |s| s.write(0, b"LOOP"),
        Damage::Foreign { found: [b'L', ..] },
        "\"LOOP\""
    );
    damaged!(
        |s| s.write(0, &[0; 4096]),
        Damage::Foreign { .. },
        "no exception store"
    );
    damaged!(
        |s| s.write(4, &[0]),
        Damage::Invalidated,
        "invalidated by the kernel"
    );
    damaged!(|s| s.write(4, &[3]), Damage::Flag(3), "flag 3");
    damaged!(|s| s.write(8, &[2]), Damage::Version(2), "version 2");
    for sectors in [0_u32, 1, 7, 9, 4096, 1 << 31] {
        damaged!(
            |s| s.write(12, &sectors.to_le_bytes()),
            Damage::ChunkSize(_),
            "sectors, which cannot be"
        );
    }
    // A chunk size that can be and is wrong: the store is too short for it, or its pairs are no pairs.
    spoilt(|s| s.write(12, &16_u32.to_le_bytes()));
}

#[test]
fn lengths() {
    for length in [0, 15] {
        damaged!(
            |s| s.cut(length),
            Damage::Truncated { needed: 16, .. },
            "is cut off"
        );
    }
    // Header, two chunks of pairs and 400 of data.
    let needed = 403 * 4096;
    for length in [16, 4096, 8192, 258 * 4096, needed - 1] {
        damaged!(
            |s| s.cut(length),
            Damage::Truncated { .. },
            "at least 1650688"
        );
    }
    let mut store = Writer::new(DISK, CHUNK_SECTORS);
    store.put(0, &[1]);
    store.cut(needed);
    assert_eq!(Exceptions::read(&store.finish(), DISK).unwrap().len(), 1);
}

#[test]
fn full_areas_to_the_end_of_the_file() {
    // The pairs never end: the last area is full, and the file is over.
    let disk = 256 * 4096;
    let mut store = Writer::new(disk, CHUNK_SECTORS);
    for old in 0..256 {
        store.put(old, &[1]);
    }
    store.cut(259 * 4096);
    assert_eq!(Exceptions::read(&store.finish(), disk).unwrap().len(), 256);
}

#[test]
fn exceptions() {
    let end = 519 * 4096 * 2;
    damaged!(
        |s| s.pair(400, 310),
        Damage::PastDisk {
            old: 400,
            chunks: 400
        },
        "only 400"
    );
    damaged!(
        |s| s.pair(u64::MAX, 310),
        Damage::PastDisk { .. },
        "disk that has only"
    );
    damaged!(
        |s| s.pair(301, end),
        Damage::PastStore { old: 301, .. },
        "but it has only"
    );
    damaged!(
        |s| s.pair(301, u64::MAX),
        Damage::PastStore { .. },
        "but it has only"
    );
    damaged!(
        |s| s.pair(301, 1),
        Damage::NoData { old: 301, new: 1 },
        "no chunk for data"
    );
    damaged!(
        |s| s.pair(301, 258),
        Damage::NoData { new: 258, .. },
        "no chunk for data"
    );
    damaged!(
        |s| s.pair(301, 299),
        Damage::NewTwice { new: 299 },
        "299 twice"
    );
    damaged!(
        |s| s.pair(7, 310),
        Damage::OldTwice { old: 7 },
        "chunk 7 of the disk twice"
    );
    damaged!(
        |s| s.write(4096 + 16 * 9 + 8, &[0; 8]),
        Damage::AfterEnd { chunk: 1 },
        "after the one"
    );
    damaged!(
        |s| s.pair(5, 0),
        Damage::AfterEnd { chunk: 258 },
        "after the one"
    );
    damaged!(
        |s| s.write(259 * 4096 - 1, &[1]),
        Damage::AfterEnd { chunk: 258 },
        "after the one"
    );
}

#[test]
fn more_exceptions_than_chunks_of_the_disk_are_not_collected() {
    let damage = spoilt(|s| {
        for index in 0..101 {
            s.pair(index, 310 + index);
        }
    });
    assert!(
        matches!(damage, Damage::OldTwice { old: 100 }),
        "{damage:?}"
    );
}

#[test]
fn a_directory_cannot_be_read() {
    let dir = std::fs::File::open("/").unwrap();
    Exceptions::read(&dir, DISK).unwrap_err();
}

#[test]
fn the_error_names_layer_and_file() {
    let error = Damage::Invalidated.of_layer(LayerId::from_bits(1), "/s/layers/1.cow".into());
    assert!(matches!(error, StoreError::Layer { .. }));
    let text = error.to_string();
    assert!(
        text.starts_with("the file \"/s/layers/1.cow\" of layer 0000000000000001 was invalidated"),
        "{text}"
    );
}
