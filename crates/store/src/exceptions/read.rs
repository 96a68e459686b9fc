//! Reading a store, believing nothing in it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Damage;
use super::format::{Geometry, HEADER, MAGIC, PAIR, SECTOR, VALID, VERSION};

/// The exceptions of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceptions {
    geometry: Geometry,
    pub(super) disk_bytes: u64,
    next_free: u64,
    /// Old and new chunk, by old chunk.
    pairs: Vec<(u64, u64)>,
}

impl Exceptions {
    /// Reads the store in `file` of a disk of `disk_bytes`, checking everything in it. Read are the
    /// header and one chunk for every 256 exceptions (with chunks of 4 KiB); holes cost nothing. No
    /// device may write the file at the same time.
    ///
    /// # Errors
    /// [`Damage`] when the file is no whole store of such a disk.
    pub fn read(file: &File, disk_bytes: u64) -> Result<Self, Damage> {
        match Self::read_any(file, disk_bytes)? {
            (found, true) => Ok(found),
            (_, false) => Err(Damage::Invalidated),
        }
    }

    /// As [`Exceptions::read`], and whether the kernel still holds the store for valid. One that it
    /// invalidated, since it could not write or keep an exception, has all exceptions that were
    /// committed until then: it is the disk as of that moment, as after a power cut.
    ///
    /// # Errors
    /// [`Damage`] when the file is no whole store of such a disk.
    pub fn read_any(file: &File, disk_bytes: u64) -> Result<(Self, bool), Damage> {
        let length = file.metadata()?.len();
        let (geometry, valid) = header(file, length)?;
        let needed = geometry
            .full_chunks(disk_bytes)
            .and_then(|chunks| chunks.checked_mul(geometry.chunk))
            .unwrap_or(u64::MAX);
        if length < needed {
            return Err(Damage::Truncated { length, needed });
        }
        let mut found = Self {
            geometry,
            disk_bytes,
            next_free: 2,
            pairs: Vec::new(),
        };
        found.areas(file, length)?;
        found.distinct()?;
        Ok((found, valid))
    }

    /// All areas up to the end.
    fn areas(&mut self, file: &File, length: u64) -> Result<(), Damage> {
        let chunk_bytes = self.geometry.chunk;
        let mut area = vec![0; usize::try_from(chunk_bytes).unwrap_or(usize::MAX)];
        for index in 0.. {
            let past = |needed| Damage::Truncated { length, needed };
            let chunk = self.geometry.pairs_chunk(index).ok_or(past(u64::MAX))?;
            let end = chunk
                .checked_add(1)
                .and_then(|next| next.checked_mul(chunk_bytes))
                .ok_or(past(u64::MAX))?;
            if end > length {
                return Err(past(end));
            }
            file.read_exact_at(&mut area, end - chunk_bytes)?;
            if !self.pairs_of(&area, chunk, length / chunk_bytes)? {
                break;
            }
        }
        Ok(())
    }

    /// The pairs of one area; whether it was full, so that another follows.
    fn pairs_of(&mut self, area: &[u8], chunk: u64, store_chunks: u64) -> Result<bool, Damage> {
        let disk_chunks = self.geometry.disk_chunks(self.disk_bytes);
        let mut pairs = area.chunks_exact(PAIR);
        while let Some(pair) = pairs.next() {
            let (old, new) = (number(pair, 0), number(pair, 8));
            if new == 0 {
                let blank = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
                return if old == 0 && pairs.all(blank) {
                    Ok(false)
                } else {
                    Err(Damage::AfterEnd { chunk })
                };
            }
            if old >= disk_chunks {
                let chunks = disk_chunks;
                return Err(Damage::PastDisk { old, chunks });
            }
            if new >= store_chunks {
                let chunks = store_chunks;
                return Err(Damage::PastStore { old, new, chunks });
            }
            if !self.geometry.holds_data(new) {
                return Err(Damage::NoData { old, new });
            }
            // More of them than the disk has chunks: one must be there twice. Found here, so that
            // what a store may cost in memory is bounded by its disk.
            if self.pairs.len() as u64 >= disk_chunks {
                return Err(Damage::OldTwice { old });
            }
            self.pairs.push((old, new));
            self.next_free = self.next_free.max(new + 1);
        }
        Ok(true)
    }

    /// Puts the pairs in order; no chunk is in two of them.
    fn distinct(&mut self) -> Result<(), Damage> {
        let mut new: Vec<u64> = self.pairs.iter().map(|&(_, new)| new).collect();
        new.sort_unstable();
        if let Some(twice) = new.windows(2).find(|two| two[0] == two[1]) {
            return Err(Damage::NewTwice { new: twice[0] });
        }
        self.pairs.sort_unstable();
        if let Some(twice) = self.pairs.windows(2).find(|two| two[0].0 == two[1].0) {
            return Err(Damage::OldTwice { old: twice[0].0 });
        }
        if !self.geometry.holds_data(self.next_free) {
            self.next_free += 1;
        }
        Ok(())
    }

    /// The exceptions, by the chunk of the disk: that chunk, and the chunk of the store with its
    /// content.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.pairs.iter().copied()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Sectors of a chunk, as the header says.
    #[must_use]
    pub fn chunk_sectors(&self) -> u32 {
        // It came from a u32.
        u32::try_from(self.geometry.chunk / SECTOR).unwrap_or(u32::MAX)
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.geometry.chunk
    }

    /// Bytes of the disk that the store has instead of what lies below: whole chunks, but for a last
    /// one that the disk ends in.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        self.iter()
            .map(|(old, _)| {
                let at = old * self.geometry.chunk;
                (self.disk_bytes - at).min(self.geometry.chunk)
            })
            .sum()
    }

    /// The chunk of the store that the kernel would fill next.
    #[must_use]
    pub fn next_free(&self) -> u64 {
        self.next_free
    }
}

/// Whether the kernel holds a store for valid; only its header is read.
///
/// # Errors
/// [`Damage`] when it has none.
pub fn is_valid(file: &File) -> Result<bool, Damage> {
    let length = file.metadata()?.len();
    header(file, length).map(|(_, valid)| valid)
}

/// The geometry of a store, and whether it is valid, from its header.
fn header(file: &File, length: u64) -> Result<(Geometry, bool), Damage> {
    if length < HEADER as u64 {
        let needed = HEADER as u64;
        return Err(Damage::Truncated { length, needed });
    }
    let mut head = [0; HEADER];
    file.read_exact_at(&mut head, 0)?;
    let [magic, valid, version, chunk] = fields(&head);
    if magic != MAGIC {
        return Err(Damage::Foreign { found: magic });
    }
    let version = u32::from_le_bytes(version);
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let valid = match u32::from_le_bytes(valid) {
        VALID => true,
        0 => false,
        other => return Err(Damage::Flag(other)),
    };
    let chunk = u32::from_le_bytes(chunk);
    let geometry = Geometry::new(chunk).ok_or(Damage::ChunkSize(chunk))?;
    Ok((geometry, valid))
}

fn fields(head: &[u8; HEADER]) -> [[u8; 4]; 4] {
    let mut fields = [[0; 4]; 4];
    for (field, bytes) in fields.iter_mut().zip(head.chunks_exact(4)) {
        field.copy_from_slice(bytes);
    }
    fields
}

/// The number at `at`.
fn number(pair: &[u8], at: usize) -> u64 {
    pair.iter()
        .skip(at)
        .take(8)
        .rev()
        .fold(0, |value, &byte| (value << 8) | u64::from(byte))
}
