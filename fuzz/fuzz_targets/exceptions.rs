//! The reader of exception stores, on any bytes. Run it with `cargo fuzz run exceptions`.
//!
//! The first 16 bytes of the input are the size of the disk and the length of the file, so that sparse
//! stores of any size are seen; the rest is what the file begins with.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use cowslip_store::exceptions::Exceptions;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

fuzz_target!(|input: &[u8]| {
    let Some((numbers, content)) = input.split_at_checked(16) else {
        return;
    };
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u64, |value, &byte| (value << 8) | u64::from(byte))
    };
    let (disk, length) = (number(&numbers[..8]), number(&numbers[8..]));
    let file = File::from(memfd_create("store", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all_at(content, 0).expect("written");
    // A length that no file can have leaves it as long as its content.
    let _ = file.set_len(length);
    let Ok(found) = Exceptions::read(&file, disk) else {
        return;
    };
    let length = file.metadata().expect("looked at").len();
    let mut changed = 0;
    for (old, new) in found.iter() {
        assert!(old < disk.div_ceil(found.chunk_bytes()));
        assert!((new + 1) * found.chunk_bytes() <= length);
        assert!(new < found.next_free());
        changed += found.chunk_bytes();
    }
    assert!(found.changed_bytes() <= changed.min(disk));
});
