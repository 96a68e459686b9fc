//! The persistent exception store of device-mapper's snapshot target, read and made without a device.
//!
//! ```text
//!  chunk 0    header: magic "SnAp", valid, version 1, sectors a chunk (all little endian u32)
//!  chunk 1    area 0: pairs (old chunk, new chunk) of little endian u64, 16 bytes each
//!  chunk 2 …  the data of area 0: one chunk for each pair
//!  chunk 2+n  area 1, and so on; n is the number of pairs in a chunk
//! ```
//!
//! The first pair whose new chunk is 0 ends the store. The kernel writes a pair only after its data, so
//! what the pairs name is whole. A store comes from the kernel, but its file may have been anywhere
//! since: every number in it is checked before it is used.

mod flatten;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cowslip_model::ByteSize;

use crate::StoreError;

pub use flatten::{Flattened, flatten};

/// Sectors of a chunk: 4 KiB, the smallest there is. A larger chunk would copy more for each small
/// write, and guests write pages.
pub const CHUNK_SECTORS: u32 = 8;

const SECTOR: u64 = 512;
/// "SnAp".
const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
const PAIR: u64 = 16;
/// Chunks between 4 KiB and 1 MiB are believed; the kernel takes a power of two.
const CHUNK_SECTORS_MAX: u32 = 2048;
/// Chunks beyond those that are needed, so that no rounding of the kernel's fills a store.
const SLACK_CHUNKS: u64 = 64;

/// What is wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// Shorter than what it speaks of.
    #[error("is truncated: it has {length} bytes and speaks of byte {wanted}")]
    Truncated {
        /// What there is.
        length: u64,
        /// What is missing.
        wanted: u64,
    },
    /// It does not begin as a store does.
    #[error("is no exception store: it begins with {0:#010x}")]
    Foreign(u32),
    /// The kernel gave it up, since it overflowed or could not be written.
    #[error("was invalidated by the kernel: what it held is lost")]
    Invalid,
    /// Of a format that nobody has defined yet.
    #[error("has the unknown version {0}")]
    Version(u32),
    /// No power of two between 8 and 2048.
    #[error("has chunks of {0} sectors")]
    Chunk(u32),
    /// A pair that names no chunk of the disk.
    #[error("changes chunk {old} of a disk that has {chunks}")]
    BeyondDisk {
        /// The chunk.
        old: u64,
        /// Chunks of the disk.
        chunks: u64,
    },
    /// A pair whose data is not data.
    #[error("keeps chunk {old} at {new}, where no data can be")]
    NoData {
        /// The disk's chunk.
        old: u64,
        /// The store's chunk.
        new: u64,
    },
    /// Two pairs that exclude one another.
    #[error("names chunk {0} twice")]
    Twice(u64),
}

/// What one store changes, found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceptions {
    chunk_bytes: u64,
    /// From the disk's chunk to the store's.
    changed: BTreeMap<u64, u64>,
}

impl Exceptions {
    /// Reads the store of a disk of `disk_bytes`.
    ///
    /// # Errors
    /// [`Damage`], at the first thing that is wrong.
    pub fn read(file: &File, disk_bytes: u64) -> Result<Self, Damage> {
        let length = file.metadata().map_err(Damage::Read)?.len();
        let header = piece(file, length, 0, 16)?;
        let word = |at: usize| u32_at(&header, at);
        if word(0) != MAGIC {
            return Err(Damage::Foreign(word(0)));
        }
        if word(4) == 0 {
            return Err(Damage::Invalid);
        }
        if word(8) != VERSION {
            return Err(Damage::Version(word(8)));
        }
        let sectors = word(12);
        if !sectors.is_power_of_two() || !(CHUNK_SECTORS..=CHUNK_SECTORS_MAX).contains(&sectors) {
            return Err(Damage::Chunk(sectors));
        }
        let chunk_bytes = u64::from(sectors) * SECTOR;
        let mut found = Self {
            chunk_bytes,
            changed: BTreeMap::new(),
        };
        let stride = chunk_bytes / PAIR + 1;
        let disk_chunks = disk_bytes.div_ceil(chunk_bytes);
        let mut used = std::collections::HashSet::new();
        for area in 0.. {
            let at = (1 + area * stride) * chunk_bytes;
            // An area begins only when the one before is full, which needs its data before it.
            let pairs = piece(file, length, at, chunk_bytes)?;
            for pair in pairs.chunks_exact(16) {
                let (old, new) = (u64_at(pair, 0), u64_at(pair, 8));
                if new == 0 {
                    return Ok(found);
                }
                found.take(old, new, disk_chunks, length)?;
                if !used.insert(new) {
                    return Err(Damage::Twice(new));
                }
            }
        }
        Ok(found)
    }

    fn take(&mut self, old: u64, new: u64, chunks: u64, length: u64) -> Result<(), Damage> {
        if old >= chunks {
            return Err(Damage::BeyondDisk { old, chunks });
        }
        let stride = self.chunk_bytes / PAIR + 1;
        // Chunk 0 is the header, and every stride after it one of pairs.
        if (new - 1).is_multiple_of(stride) {
            return Err(Damage::NoData { old, new });
        }
        let wanted = new
            .checked_add(1)
            .and_then(|next| next.checked_mul(self.chunk_bytes));
        match wanted {
            Some(wanted) if wanted <= length => {}
            _ => {
                return Err(Damage::Truncated {
                    length,
                    wanted: wanted.unwrap_or(u64::MAX),
                });
            }
        }
        match self.changed.entry(old) {
            Entry::Occupied(_) => Err(Damage::Twice(old)),
            Entry::Vacant(place) => {
                place.insert(new);
                Ok(())
            }
        }
    }

    /// Bytes of a chunk.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Bytes of the disk that it changes, in whole chunks.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        self.changed.len() as u64 * self.chunk_bytes
    }

    /// The changes: the disk's chunk, and the store's chunk that has its data; in the disk's order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.changed.iter().map(|(old, new)| (*old, *new))
    }
}

/// Bytes that a store of a disk of `disk_bytes` needs: every chunk of the disk, the pairs that name
/// them, the header, and slack (R23). A smaller one overflows when the guest rewrites all of its disk.
///
/// # Errors
/// When a disk is too large to be counted (R6).
pub fn store_size(disk_bytes: u64, chunk_sectors: u32) -> Result<u64, StoreError> {
    let chunk = u64::from(chunk_sectors) * SECTOR;
    let chunks = disk_bytes.div_ceil(chunk);
    // One area more than are full: the empty pair that ends the store stands in it.
    let areas = chunks / (chunk / PAIR) + 1;
    chunks
        .checked_add(areas)
        .and_then(|sum| sum.checked_add(1 + SLACK_CHUNKS))
        .and_then(|sum| sum.checked_mul(chunk))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| StoreError::Size {
            size: ByteSize(disk_bytes),
            why: "too large for an exception store".to_owned(),
        })
}

/// How a store without changes begins; zeros follow. It is known as ours before the kernel sees it.
#[must_use]
pub fn blank_store(chunk_sectors: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    for (index, word) in [MAGIC, 1, VERSION, chunk_sectors].into_iter().enumerate() {
        bytes[index * 4..][..4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Bytes of a file, which must be there.
fn piece(file: &File, length: u64, at: u64, bytes: u64) -> Result<Vec<u8>, Damage> {
    let wanted = at.saturating_add(bytes);
    if wanted > length {
        return Err(Damage::Truncated { length, wanted });
    }
    let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
    file.read_exact_at(&mut buffer, at).map_err(Damage::Read)?;
    Ok(buffer)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
