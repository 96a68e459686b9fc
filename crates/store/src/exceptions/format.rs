//! Numbers of the format.

/// The first bytes of a store.
pub(crate) const MAGIC: [u8; 4] = *b"SnAp";
/// Where the flag is, in bytes.
pub(crate) const VALID_AT: u64 = 4;
/// The flag of a store that is whole.
pub(crate) const VALID: u32 = 1;
/// The only version there is.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header's fields.
pub(crate) const HEADER: usize = 16;
/// Bytes of a pair.
pub(crate) const PAIR: usize = 16;
/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;

/// Chunks smaller than a page are of no use to a loop device, larger ones than 1 MiB to nobody.
const CHUNK_SECTORS_ALLOWED: std::ops::RangeInclusive<u32> = 8..=2048;

/// Where things lie in a store of one chunk size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of a chunk.
    pub(crate) chunk: u64,
    /// Pairs that fill a chunk.
    pub(crate) per_area: u64,
}

impl Geometry {
    /// None for a chunk size that cannot be.
    pub(crate) fn new(chunk_sectors: u32) -> Option<Self> {
        if !chunk_sectors.is_power_of_two() || !CHUNK_SECTORS_ALLOWED.contains(&chunk_sectors) {
            return None;
        }
        let chunk = u64::from(chunk_sectors) * SECTOR;
        Some(Self {
            chunk,
            per_area: chunk / PAIR as u64,
        })
    }

    /// The chunk with the pairs of `area`; none past the end of every file.
    pub(crate) fn pairs_chunk(self, area: u64) -> Option<u64> {
        (self.per_area + 1).checked_mul(area)?.checked_add(1)
    }

    /// Whether a chunk is there for data: it is neither the header nor one with pairs.
    pub(crate) fn holds_data(self, chunk: u64) -> bool {
        chunk != 0 && chunk % (self.per_area + 1) != 1
    }

    /// Chunks of a disk; the last one may lie on it only in part.
    pub(crate) fn disk_chunks(self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(self.chunk)
    }

    /// Chunks of a store without slack that holds all of a disk. When an area is full, the kernel
    /// wipes the pairs of the next before it goes on: that chunk must be there too.
    pub(crate) fn full_chunks(self, disk_bytes: u64) -> Option<u64> {
        let data = self.disk_chunks(disk_bytes);
        let areas = data / self.per_area + 1;
        data.checked_add(areas)?.checked_add(1)
    }

    /// What a store has more than it should need: a chunk that was in flight when the machine lost
    /// its power is never used again. Slack is a hole until then.
    pub(crate) fn slack_chunks(self, disk_bytes: u64) -> Option<u64> {
        (self.disk_chunks(disk_bytes) / 128).checked_add(2 * (self.per_area + 1))
    }
}
