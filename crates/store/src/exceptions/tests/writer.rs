//! A writer of stores for tests: it puts exceptions where the kernel would.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::{blank_store, store_size};

/// A store that is being written.
pub(crate) struct Writer {
    file: File,
    chunk: u64,
    per_area: u64,
    pairs: u64,
    next_free: u64,
}

impl Writer {
    /// An empty store of a disk.
    pub(crate) fn new(disk: u64, sectors: u32) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&blank_store(sectors).unwrap(), 0)
            .unwrap();
        file.set_len(store_size(disk, sectors).unwrap()).unwrap();
        Self::on(file, sectors)
    }

    /// A file that is an empty store already.
    pub(crate) fn on(file: File, sectors: u32) -> Self {
        let chunk = u64::from(sectors) * 512;
        Self {
            file,
            chunk,
            per_area: chunk / 16,
            pairs: 0,
            next_free: 2,
        }
    }

    pub(crate) fn next_free(&self) -> u64 {
        self.next_free
    }

    /// A chunk that was taken and never committed.
    pub(crate) fn lose(&mut self) {
        self.next_free += 1;
        if self.next_free % (self.per_area + 1) == 1 {
            self.next_free += 1;
        }
    }

    /// Where the next pair will be.
    pub(crate) fn pair_at(&self) -> u64 {
        let (area, index) = (self.pairs / self.per_area, self.pairs % self.per_area);
        (1 + area * (self.per_area + 1)) * self.chunk + index * 16
    }

    /// A new exception with this content; gives its chunk of the store.
    pub(crate) fn put(&mut self, old: u64, content: &[u8]) -> u64 {
        let new = self.next_free;
        self.lose();
        self.file.write_all_at(content, new * self.chunk).unwrap();
        self.pair(old, new);
        new
    }

    /// A pair as it is told.
    pub(crate) fn pair(&mut self, old: u64, new: u64) {
        let bytes = [old.to_le_bytes(), new.to_le_bytes()].concat();
        self.file.write_all_at(&bytes, self.pair_at()).unwrap();
        self.pairs += 1;
    }

    /// Overwrites bytes.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    /// Turns bits of one byte.
    pub(crate) fn turn(&mut self, at: u64, bits: u8) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at).unwrap();
        self.write(at, &[byte[0] ^ bits]);
    }

    /// Sets the length.
    pub(crate) fn cut(&mut self, length: u64) {
        self.file.set_len(length).unwrap();
    }

    /// The file.
    pub(crate) fn finish(self) -> File {
        self.file
    }
}
