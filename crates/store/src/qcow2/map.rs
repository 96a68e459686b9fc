//! Which parts of the disk an overlay holds: its L1 and L2 tables, read without a monitor and, as the
//! header is, without believing them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{EXTENDED_ENTRY, PLAIN_ENTRY, l1_entries};
use super::read::Overlay;
use crate::changes::{Change, Changes, Content};

/// Bits of an L1 or L2 entry that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Set where the table or cluster belongs to the present state alone, as it always does here.
const COPIED: u64 = 1 << 63;
/// L2: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// L2 without subclusters: the cluster reads as zeros.
const ZERO: u64 = 1;
/// Subclusters of a cluster.
const SUBCLUSTERS: u32 = 32;

/// Why the tables of an overlay are not to be trusted. Worded to follow the file's name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    /// A table or cluster lies where none can.
    #[error("has tables that contradict themselves: {what} lies at {at:#x}")]
    Place {
        /// What.
        what: &'static str,
        /// Where, in bytes.
        at: u64,
    },
    /// An entry with bits that mean nothing, or two things at once.
    #[error("has tables that contradict themselves: {entry:#x} is no {what}")]
    Entry {
        /// What it should be.
        what: &'static str,
        /// The entry.
        entry: u64,
    },
    /// One table for two parts of the disk.
    #[error("has tables that contradict themselves: the table at {0:#x} is used twice")]
    Shared(u64),
    /// A compressed cluster: no monitor of ours writes one.
    #[error("has compressed clusters, which no layer has: decompress it with \"qemu-img convert\"")]
    Compressed,
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// What the overlay in `file` holds instead of what is below it.
///
/// # Errors
/// [`MapError`] when its tables cannot be right.
pub(crate) fn changes(file: &File, overlay: &Overlay) -> Result<Changes, MapError> {
    let map = Map {
        file,
        overlay,
        length: file.metadata()?.len(),
    };
    let mut changes = Changes::default();
    let l1 = map.l1()?;
    let mut table = vec![0; map.cluster_length()];
    let per_table = map.cluster() / map.entry();
    for (index, offset) in l1 {
        file.read_exact_at(&mut table, offset)?;
        for (entry, bytes) in (0..).zip(table.chunks_exact(map.entry_length())) {
            let at = (index * per_table + entry) << overlay.cluster_bits;
            if at >= overlay.size {
                break;
            }
            map.cluster_at(&mut changes, at, bytes)?;
        }
    }
    Ok(changes)
}

struct Map<'a> {
    file: &'a File,
    overlay: &'a Overlay,
    length: u64,
}

impl Map<'_> {
    fn cluster(&self) -> u64 {
        1 << self.overlay.cluster_bits
    }

    fn cluster_length(&self) -> usize {
        1 << self.overlay.cluster_bits
    }

    fn entry(&self) -> u64 {
        if self.overlay.extended_l2 {
            EXTENDED_ENTRY
        } else {
            PLAIN_ENTRY
        }
    }

    fn entry_length(&self) -> usize {
        if self.overlay.extended_l2 { 16 } else { 8 }
    }

    /// Index and offset of every L2 table there is. No two are the same, so that what an overlay costs
    /// in time and memory is bounded by its length.
    fn l1(&self) -> Result<Vec<(u64, u64)>, MapError> {
        let entries = l1_entries(self.overlay.size, self.overlay.cluster_bits, self.entry());
        let mut bytes = vec![0; usize::try_from(entries * 8).unwrap_or(usize::MAX)];
        self.file
            .read_exact_at(&mut bytes, self.overlay.l1_offset)?;
        let mut tables = Vec::new();
        for (index, bytes) in (0..).zip(bytes.chunks_exact(8)) {
            let entry = number(bytes);
            if entry & !(OFFSET | COPIED) != 0 {
                let what = "entry of the first table";
                return Err(MapError::Entry { what, entry });
            }
            if entry & OFFSET != 0 {
                tables.push((index, self.place("a table", entry, self.cluster())?));
            }
        }
        let mut offsets: Vec<u64> = tables.iter().map(|&(_, offset)| offset).collect();
        offsets.sort_unstable();
        match offsets.windows(2).find(|two| two[0] == two[1]) {
            Some(twice) => Err(MapError::Shared(twice[0])),
            None => Ok(tables),
        }
    }

    /// The offset in an entry: on a cluster boundary, not the header's, and `needed` bytes before the
    /// end of the file.
    fn place(&self, what: &'static str, entry: u64, needed: u64) -> Result<u64, MapError> {
        let at = entry & OFFSET;
        let end = at.checked_add(needed);
        if at < self.cluster()
            || !at.is_multiple_of(self.cluster())
            || end.is_none_or(|end| end > self.length)
        {
            return Err(MapError::Place { what, at });
        }
        Ok(at)
    }

    /// The cluster of the disk at `at`.
    fn cluster_at(&self, changes: &mut Changes, at: u64, bytes: &[u8]) -> Result<(), MapError> {
        let entry = number(&bytes[..8]);
        if entry & COMPRESSED != 0 {
            return Err(MapError::Compressed);
        }
        let zero = if self.overlay.extended_l2 { 0 } else { ZERO };
        if entry & !(OFFSET | COPIED | zero) != 0 {
            let what = "entry of a second table";
            return Err(MapError::Entry { what, entry });
        }
        let (allocated, zeros) = if self.overlay.extended_l2 {
            let bitmap = number(&bytes[8..16]);
            (bitmap & 0xffff_ffff, bitmap >> 32)
        } else if entry & ZERO != 0 {
            (0, u64::from(u32::MAX))
        } else if entry & OFFSET != 0 {
            (u64::from(u32::MAX), 0)
        } else {
            (0, 0)
        };
        if allocated & zeros != 0 {
            let (what, entry) = ("bitmap of subclusters", allocated | zeros << 32);
            return Err(MapError::Entry { what, entry });
        }
        if allocated == 0 && zeros == 0 {
            return Ok(());
        }
        let host = if allocated == 0 {
            0
        } else {
            // The last cluster of a file may end where its last data does.
            self.place("a cluster", entry, 1)?
        };
        let length = self.cluster() / u64::from(SUBCLUSTERS);
        for index in 0..SUBCLUSTERS {
            let (bit, into) = (1_u64 << index, u64::from(index) * length);
            let content = if allocated & bit != 0 {
                Content::Data(host + into)
            } else if zeros & bit != 0 {
                Content::Zeros
            } else {
                continue;
            };
            let at = at + into;
            let change = Change {
                at,
                length,
                content,
            };
            changes.push(self.overlay.size, change);
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .fold(0, |value, &byte| (value << 8) | u64::from(byte))
}
