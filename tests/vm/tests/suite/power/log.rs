//! The log of device-mapper's target log-writes, and what a disk may hold when its power is cut at any
//! place of it.
//!
//! ```text
//!  sector 0     1        …                        (the log device, in sectors of 512 bytes)
//!  ┌─────────┬─────────┬────────────┬─────────┬─
//!  │ how many│ entry 0 │ its data   │ entry 1 │ …
//!  └─────────┴─────────┴────────────┴─────────┴─
//! ```
//!
//! The target logs a write when it is sure to be on the disk: one that was forced at once (FUA) when it
//! is done, any other with the flush that came after it. So between two flushes stand first the forced
//! writes and then those of which a power cut before the second flush leaves any part. Sources: the
//! kernel's `Documentation/admin-guide/device-mapper/log-writes.rst` and `drivers/md/dm-log-writes.c`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// What a disk writes whole or not at all, at most: a page.
const PAGE: u64 = 4096;

struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where in the log its data begin, in bytes.
    data: u64,
    mark: Option<String>,
}

impl Entry {
    fn is(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    fn length(&self) -> u64 {
        self.sectors * SECTOR
    }
}

/// A whole log.
pub(crate) struct Log {
    file: File,
    entries: Vec<Entry>,
}

/// One state that a power cut may leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Every write before this entry is on the disk.
    pub(crate) whole: usize,
    /// Of the writes from there to this entry, the pages that the seed draws are.
    pub(crate) partly: Option<(usize, u64)>,
}

impl Cut {
    /// The first entry of which nothing is on the disk.
    pub(crate) fn end(&self) -> usize {
        self.partly.map_or(self.whole, |(end, _)| end)
    }
}

fn number(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().unwrap())
}

/// SplitMix64: the same states in every run.
struct Random(u64);

impl Random {
    fn bit(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) & 1 == 1
    }
}

impl Log {
    pub(crate) fn read(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let mut sector = [0; SECTOR as usize];
        file.read_exact_at(&mut sector, 0).unwrap();
        assert_eq!(number(&sector, 0), MAGIC, "no log of log-writes");
        assert_eq!(number(&sector, 1), 1, "another version of the format");
        let count = number(&sector, 2);
        let size = u32::from_le_bytes(sector[24..28].try_into().unwrap());
        assert_eq!(u64::from(size), SECTOR);
        let mut entries = Vec::new();
        let mut at = SECTOR;
        for _ in 0..count {
            file.read_exact_at(&mut sector, at).unwrap();
            at += SECTOR;
            let [start, sectors, flags, length] = [0, 1, 2, 3].map(|index| number(&sector, index));
            let mark = (flags & MARK != 0).then(|| {
                let text = &sector[32..32 + usize::try_from(length).unwrap()];
                String::from_utf8(text.to_vec()).unwrap()
            });
            let entry = Entry {
                sector: start,
                sectors,
                flags,
                data: at,
                mark,
            };
            if !entry.is(DISCARD) {
                at += entry.length();
            }
            entries.push(entry);
        }
        Self { file, entries }
    }

    /// Where the mark `name` stands.
    pub(crate) fn mark(&self, name: &str) -> usize {
        let found = |entry: &Entry| entry.mark.as_deref() == Some(name);
        let place = self.entries.iter().position(found);
        place.unwrap_or_else(|| panic!("no mark {name}"))
    }

    /// What a cut in `range` may leave: the disk after each write in its order, and between two flushes
    /// `drawn` times any part of what was not forced.
    pub(crate) fn cuts(&self, range: Range<usize>, drawn: u64) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let mut begin = range.start;
        for index in range.clone() {
            let entry = &self.entries[index];
            let changes = entry.sectors > 0;
            if changes || entry.mark.is_some() {
                cuts.push(Cut {
                    whole: index + 1,
                    partly: None,
                });
            }
            if changes && entry.is(FUA) {
                begin = index + 1;
            }
            if entry.is(FLUSH) {
                // With fewer than two writes there is nothing to draw: both states are there.
                let writes = (begin..index).filter(|&at| self.entries[at].sectors > 0);
                if writes.count() > 1 {
                    cuts.extend((0..drawn).map(|draw| Cut {
                        whole: begin,
                        partly: Some((index, (index as u64) << 8 | draw)),
                    }));
                }
                begin = index + 1;
            }
        }
        // Those of one place together, and places in their order: a base only ever moves forward.
        cuts.sort_by_key(|cut| cut.whole);
        cuts
    }

    /// Writes the entries of `range` to `disk`.
    pub(crate) fn replay(&self, range: Range<usize>, disk: &File) {
        for entry in &self.entries[range] {
            self.write(entry, disk, |_| true);
        }
    }

    /// Writes to `disk`, which holds all before `cut.whole`, what else the cut leaves.
    pub(crate) fn replay_rest(&self, cut: &Cut, disk: &File) {
        if let Some((end, seed)) = cut.partly {
            let mut random = Random(seed);
            for entry in &self.entries[cut.whole..end] {
                self.write(entry, disk, |_| random.bit());
            }
        }
    }

    fn write(&self, entry: &Entry, disk: &File, mut arrives: impl FnMut(u64) -> bool) {
        let mut page = [0; PAGE as usize];
        let mut done = 0;
        while done < entry.length() {
            let length = (entry.length() - done).min(PAGE);
            let bytes = &mut page[..usize::try_from(length).unwrap()];
            if arrives(done) {
                if entry.is(DISCARD) {
                    bytes.fill(0);
                } else {
                    self.file.read_exact_at(bytes, entry.data + done).unwrap();
                }
                disk.write_all_at(bytes, entry.sector * SECTOR + done)
                    .unwrap();
            }
            done += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with these entries: place, bytes, flags.
    fn log(entries: &[(u64, u8, u64)]) -> (tempfile::TempDir, Log) {
        let mut bytes = Vec::new();
        for word in [MAGIC, 1, entries.len() as u64, SECTOR] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.resize(SECTOR as usize, 0);
        for &(sector, byte, flags) in entries {
            let sectors = u64::from(byte != 0);
            let start = bytes.len();
            for word in [sector, sectors, flags, 0] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.resize(start + SECTOR as usize, 0);
            bytes.resize(bytes.len() + (sectors * SECTOR) as usize, byte);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        let log = Log::read(&path);
        (directory, log)
    }

    #[test]
    fn what_was_forced_is_always_there_and_of_the_rest_any_part() {
        let (directory, log) = log(&[
            (0, 1, FUA),
            (1, 2, 0),
            (2, 3, 0),
            (0, 0, FLUSH),
            (1, 4, 0),
            (0, 0, FLUSH),
        ]);
        let disk = directory.path().join("disk");
        let disk = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(disk)
            .unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for cut in log.cuts(0..6, 16) {
            disk.set_len(0).unwrap();
            disk.set_len(3 * SECTOR).unwrap();
            log.replay(0..cut.whole, &disk);
            log.replay_rest(&cut, &disk);
            let found = [0, 1, 2].map(|sector| {
                let mut byte = [0];
                disk.read_exact_at(&mut byte, sector * SECTOR).unwrap();
                byte[0]
            });
            seen.insert(found);
        }
        let possible = [[1, 0, 0], [1, 0, 3], [1, 2, 0], [1, 2, 3], [1, 4, 3]];
        assert_eq!(seen, possible.into());
    }
}
