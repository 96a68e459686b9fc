//! The persistent exception store of the kernel's dm-snapshot, read without a device.
//!
//! A `dm` layer is such a store. It holds the chunks of the disk that differ from the layer below
//! (its *exceptions*), and the kernel alone writes it. Sources: the kernel's
//! `Documentation/admin-guide/device-mapper/snapshot.rst` and `drivers/md/dm-snap-persistent.c`. All
//! numbers in it are little-endian.
//!
//! ```text
//!  chunk 0   1           2 … n+1       n+2          n+3 … 2n+2
//!  ┌────────┬───────────┬─────────────┬───────────┬─────────────┬─
//!  │ header │ pairs of  │ data of     │ pairs of  │ data of     │ …   n pairs fill one chunk
//!  │        │ area 0    │ area 0      │ area 1    │ area 1      │
//!  └────────┴───────────┴─────────────┴───────────┴─────────────┴─
//! ```
//!
//! A pair says in which chunk of the store (*new*) the content of a chunk of the disk (*old*) is. The
//! first pair whose new chunk is 0 ends them all.

mod damage;
mod flatten;
mod format;
mod merge;
mod read;
#[cfg(test)]
pub(crate) mod tests;

use cowslip_model::ByteSize;

pub use damage::Damage;
pub use flatten::{FlattenError, Store, flatten};
pub use merge::merge;
pub use read::{Exceptions, is_valid};

use crate::StoreError;
use format::{Geometry, VALID, VERSION};

/// Sectors of a chunk, where nothing else is asked for: 4 KiB, the block size of the guest's file
/// system, so that its first write to a block copies nothing from below.
pub const CHUNK_SECTORS: u32 = 8;

/// What lets the kernel take a store again that it invalidated and [`Exceptions::read_any`] found
/// whole: where it is to be written, and what.
#[must_use]
pub const fn validation() -> (u64, [u8; 4]) {
    (format::VALID_AT, VALID.to_le_bytes())
}

/// Length in bytes of a store that can take every chunk of a disk of `disk_bytes` (R23): header, pairs,
/// data and slack, a whole number of chunks. A store that runs full is invalidated by the kernel with
/// all that it holds.
///
/// # Errors
/// [`StoreError::Size`] when there can be no such store.
pub fn store_size(disk_bytes: u64, chunk_sectors: u32) -> Result<u64, StoreError> {
    let refuse = |why: &str| StoreError::Size {
        size: ByteSize(disk_bytes),
        why: why.to_owned(),
    };
    let geometry = Geometry::new(chunk_sectors).ok_or_else(|| {
        refuse("cut into chunks of a size that cannot be: give 8 to 2048 sectors, a power of two")
    })?;
    if disk_bytes == 0 {
        return Err(refuse("nothing at all"));
    }
    geometry
        .full_chunks(disk_bytes)
        .zip(geometry.slack_chunks(disk_bytes))
        .and_then(|(full, slack)| full.checked_add(slack))
        .and_then(|chunks| chunks.checked_mul(geometry.chunk))
        // The kernel's offsets in a file are signed.
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| refuse("too large for any file to hold its changes"))
}

/// The bytes that begin a fresh store: a valid header and no pair. The kernel would write the same into
/// a store of zeros when it opens one first; written by us, a store is known as such from its making.
/// The rest of the file is a hole.
///
/// # Errors
/// [`StoreError::Size`] when a chunk cannot have this size.
pub fn blank_store(chunk_sectors: u32) -> Result<Vec<u8>, StoreError> {
    let chunk = store_size(1, chunk_sectors).map(|_| u64::from(chunk_sectors) * format::SECTOR)?;
    let mut bytes = format::MAGIC.to_vec();
    for field in [VALID, VERSION, chunk_sectors] {
        bytes.extend(field.to_le_bytes());
    }
    // Header and pairs of area 0.
    let length = usize::try_from(2 * chunk).unwrap_or(usize::MAX);
    bytes.resize(length, 0);
    Ok(bytes)
}
