//! How large a store must be.

use proptest::prelude::*;

use super::super::{blank_store, store_size};
use crate::StoreError;

#[test]
fn impossible_stores_are_refused() {
    // covers R6
    let refused = |disk, sectors| match store_size(disk, sectors) {
        Err(StoreError::Size { .. }) => {}
        other => panic!("{disk} in chunks of {sectors}: {other:?}"),
    };
    for disk in [0, u64::MAX, i64::MAX as u64, (i64::MAX as u64) / 257 * 256] {
        refused(disk, 8);
    }
    for sectors in [0, 1, 4, 9, 24, 4096, u32::MAX] {
        refused(1 << 30, sectors);
        assert!(blank_store(sectors).is_err());
    }
    assert!(store_size(1 << 61, 8).is_ok());
}

proptest! {
    /// Larger than disk and pairs, and not by much.
    #[test]
    fn a_store_is_a_little_larger_than_its_disk(
        disk in 1_u64..1 << 50,
        shift in 3_u32..=11,
    ) {
        let chunk = 512 << shift;
        let size = store_size(disk, 1 << shift).unwrap();
        prop_assert!(size.is_multiple_of(chunk));
        let data = disk.div_ceil(chunk) * chunk;
        let pairs = disk.div_ceil(chunk) * 16;
        prop_assert!(size > data + pairs + chunk);
        prop_assert!(size - data - pairs <= data / 100 + 3 * (chunk / 16 + 2) * chunk);
    }
}
