//! Extent trees: which blocks of a file are where.

use super::checksum::crc32c;
use super::{low16, low32, put16, put32};
use crate::error::ImportError;
use crate::spool::BLOCK;

pub(super) const MAGIC: u16 = 0xf30a;
/// Header, extents and index entries are all this long, in bytes.
pub(super) const ENTRY: usize = 12;
/// What fits in the inode after the header.
pub(super) const IN_INODE: usize = 4;
/// What fits in a block after the header, before the checksum.
pub(super) const IN_BLOCK: usize = (BLOCK - ENTRY - 4) / ENTRY;
/// The longest extent of written blocks.
pub(super) const MAX_LENGTH: u32 = 32768;

/// A stretch of a file that is contiguous on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block within the file.
    pub(super) logical: u32,
    /// Number of blocks, at most [`MAX_LENGTH`].
    pub(super) length: u32,
    /// First block on disk.
    pub(super) physical: u64,
}

/// Appends blocks to a file's extents, joining neighbours.
pub(super) fn append(extents: &mut Vec<Extent>, logical: u32, length: u32, physical: u64) {
    let mut rest = Extent {
        logical,
        length,
        physical,
    };
    if let Some(last) = extents.last_mut()
        && last.logical + last.length == logical
        && last.physical + u64::from(last.length) == physical
    {
        let joined = length.min(MAX_LENGTH - last.length);
        last.length += joined;
        rest = advance(rest, joined);
    }
    while rest.length > 0 {
        let length = rest.length.min(MAX_LENGTH);
        extents.push(Extent { length, ..rest });
        rest = advance(rest, length);
    }
}

fn advance(extent: Extent, by: u32) -> Extent {
    Extent {
        logical: extent.logical + by,
        length: extent.length - by,
        physical: extent.physical + u64::from(by),
    }
}

/// Encodes the tree, bottom up, and returns the inode's part and the number of blocks it took.
///
/// `store` is given each block of the tree and says where it put it.
pub(super) fn encode(
    extents: &[Extent],
    seed: u32,
    mut store: impl FnMut(&[u8]) -> Result<u64, ImportError>,
) -> Result<([u8; 60], u64), ImportError> {
    let mut level: Vec<(u32, [u8; ENTRY])> = extents
        .iter()
        .map(|extent| (extent.logical, leaf_entry(extent)))
        .collect();
    let mut depth = 0;
    let mut blocks = 0;
    while level.len() > IN_INODE {
        let mut above = Vec::with_capacity(level.len().div_ceil(IN_BLOCK));
        for entries in level.chunks(IN_BLOCK) {
            let mut block = vec![0; BLOCK];
            fill(&mut block, entries, IN_BLOCK, depth);
            let tail = ENTRY * (IN_BLOCK + 1);
            let checksum = crc32c(seed, &block[..tail]);
            put32(&mut block, tail, checksum);
            let logical = entries.first().map_or(0, |entry| entry.0);
            above.push((logical, index_entry(logical, store(&block)?)));
            blocks += 1;
        }
        level = above;
        depth += 1;
    }
    let mut root = [0; 60];
    fill(&mut root, &level, IN_INODE, depth);
    Ok((root, blocks))
}

fn fill(node: &mut [u8], entries: &[(u32, [u8; ENTRY])], max: usize, depth: u16) {
    put16(node, 0, MAGIC);
    put16(node, 2, low16(entries.len() as u64));
    put16(node, 4, low16(max as u64));
    put16(node, 6, depth);
    for (slot, (_, bytes)) in node[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        slot.copy_from_slice(bytes);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, extent.logical);
    put16(&mut entry, 4, low16(u64::from(extent.length)));
    put16(&mut entry, 6, low16(extent.physical >> 32));
    put32(&mut entry, 8, low32(extent.physical));
    entry
}

fn index_entry(logical: u32, block: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, logical);
    put32(&mut entry, 4, low32(block));
    put16(&mut entry, 8, low16(block >> 32));
    entry
}

/// Reads the extents of an inode whose tree is all in the inode, as `mke2fs` makes for directories.
pub(super) fn decode_shallow(root: &[u8]) -> Option<Vec<Extent>> {
    if super::get16(root, 0) != MAGIC || super::get16(root, 6) != 0 {
        return None;
    }
    let count = usize::from(super::get16(root, 2));
    let entries = root[ENTRY..].chunks_exact(ENTRY).take(count);
    Some(
        entries
            .map(|entry| Extent {
                logical: super::get32(entry, 0),
                length: u32::from(super::get16(entry, 4)),
                physical: u64::from(super::get16(entry, 6)) << 32
                    | u64::from(super::get32(entry, 8)),
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_up_to_the_longest_extent() {
        let mut extents = Vec::new();
        append(&mut extents, 0, 30_000, 100);
        append(&mut extents, 30_000, 10_000, 30_100);
        append(&mut extents, 50_000, 1, 40_100);
        let shape: Vec<_> = extents
            .iter()
            .map(|e| (e.logical, e.length, e.physical))
            .collect();
        assert_eq!(
            shape,
            [
                (0, 32_768, 100),
                (32_768, 7_232, 32_868),
                (50_000, 1, 40_100)
            ]
        );
    }

    #[test]
    fn the_tree_grows_a_level_when_it_must() {
        let extents = |n: u32| -> Vec<Extent> {
            (0..n)
                .map(|i| Extent {
                    logical: i * 2,
                    length: 1,
                    physical: 1000 + u64::from(i),
                })
                .collect()
        };
        for (count, blocks, depth) in [(4, 0, 0), (5, 1, 1), (1360, 4, 1), (1361, 6, 2)] {
            let mut stored = 0;
            let (root, took) = encode(&extents(count), 0, |_| {
                stored += 1;
                Ok(stored)
            })
            .unwrap();
            assert_eq!((took, root[6]), (blocks, depth), "{count} extents");
        }
        let (root, _) = encode(&extents(3), 0, |_| Ok(0)).unwrap();
        assert_eq!(decode_shallow(&root).unwrap(), extents(3));
    }
}
