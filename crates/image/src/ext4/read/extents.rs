//! Extent trees, walked from left to right.
//!
//! A node's depth is its parent's less one and what it maps lies where its parent says, each stretch
//! after the last. So a walk ends, however the blocks refer to one another, and no node counts twice.

use super::{Inode, ReadError, Reader};
use crate::ext4::checksum::crc32c;
use crate::ext4::extent::{ENTRY, MAGIC, MAX_LENGTH};
use crate::ext4::{get16, get32};

/// The kernel's bound: no file needs more levels.
const MAX_DEPTH: u16 = 5;
/// Files have fewer blocks than this.
const MAX_BLOCKS: u64 = 1 << 32;

/// Blocks of a file that are contiguous on disk. What no stretch covers is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// First block within the file.
    pub(crate) logical: u64,
    /// Number of blocks.
    pub(crate) length: u64,
    /// First block on disk.
    pub(crate) physical: u64,
    /// Whether the blocks have been written; others read as zeros, whatever is in them.
    pub(crate) written: bool,
}

/// One node on the way down.
struct Node {
    bytes: Vec<u8>,
    entries: usize,
    next: usize,
    depth: u16,
    /// What it maps is before this block of the file.
    end: u64,
}

/// The stretches of one file, ascending, up to its size.
pub(crate) struct Extents<'r> {
    reader: &'r Reader,
    ino: u32,
    seed: Option<u32>,
    path: Vec<Node>,
    /// Nothing further may begin before this block of the file.
    from: u64,
    /// Blocks that the file's size has.
    blocks: u64,
}

impl Reader {
    /// The stretches of a file, a directory or a long symbolic link.
    pub(crate) fn extents(&self, inode: &Inode) -> Result<Extents<'_>, ReadError> {
        let mut extents = Extents {
            reader: self,
            ino: inode.ino,
            seed: inode.seed,
            path: Vec::new(),
            from: 0,
            blocks: inode.size.div_ceil(self.block_size()),
        };
        if !inode.has_extents {
            // Nothing mapped is nothing mapped, in either form.
            return match inode.map.iter().all(|byte| *byte == 0) {
                true => Ok(extents),
                false => Err(ReadError::UnsupportedInode {
                    ino: inode.ino,
                    what: "its blocks are mapped as in ext2 and ext3, not by extents",
                }),
            };
        }
        if extents.blocks > MAX_BLOCKS {
            return ReadError::damaged(inode.ino, "its size is more than a file can have");
        }
        let depth = get16(&inode.map, 6);
        if depth > MAX_DEPTH {
            return ReadError::damaged(inode.ino, "its extent tree is too deep");
        }
        extents.enter(inode.map.to_vec(), depth, MAX_BLOCKS)?;
        Ok(extents)
    }
}

impl Extents<'_> {
    /// Goes down into a node.
    fn enter(&mut self, bytes: Vec<u8>, depth: u16, end: u64) -> Result<(), ReadError> {
        let (entries, most) = (usize::from(get16(&bytes, 2)), usize::from(get16(&bytes, 4)));
        let why = match () {
            () if get16(&bytes, 0) != MAGIC => "its extent tree has a block that is none",
            () if get16(&bytes, 6) != depth => "its extent tree has levels that do not match",
            () if entries > most || most > bytes.len() / ENTRY - 1 => {
                "its extent tree has a block that is too full"
            }
            () if entries == 0 && depth > 0 => "its extent tree has an empty level",
            () => {
                self.path.push(Node {
                    bytes,
                    entries,
                    next: 0,
                    depth,
                    end,
                });
                return Ok(());
            }
        };
        ReadError::damaged(self.ino, why)
    }

    /// Reads the node in a block, with its checksum.
    fn node(&self, number: u64) -> Result<Vec<u8>, ReadError> {
        let block = self.reader.block(self.ino, number)?;
        let tail = ENTRY + ENTRY * usize::from(get16(&block, 4));
        if let Some(seed) = self.seed
            && block.len() >= tail + 4
            && crc32c(seed, &block[..tail]) != get32(&block, tail)
        {
            return ReadError::damaged(self.ino, "its extent tree has a wrong checksum");
        }
        Ok(block)
    }

    fn step(&mut self) -> Result<Option<Stretch>, ReadError> {
        loop {
            let Some(node) = self.path.last_mut() else {
                return Ok(None);
            };
            if node.next == node.entries {
                self.path.pop();
                continue;
            }
            let at = ENTRY * (node.next + 1);
            let entry = &node.bytes[at..at + ENTRY];
            node.next += 1;
            let logical = u64::from(get32(entry, 0));
            if logical < self.from {
                return ReadError::damaged(self.ino, "its extents overlap or go backwards");
            }
            if logical >= self.blocks {
                // Room that was reserved beyond its end.
                self.path.clear();
                return Ok(None);
            }
            if node.depth == 0 {
                return self.leaf(logical, at).map(Some);
            }
            let child = u64::from(get32(entry, 4)) | u64::from(get16(entry, 8)) << 32;
            let end = match node.next < node.entries {
                true => u64::from(get32(&node.bytes, at + ENTRY)).min(node.end),
                false => node.end,
            };
            if end <= logical {
                return ReadError::damaged(self.ino, "its extents overlap or go backwards");
            }
            let depth = node.depth - 1;
            self.from = logical;
            let bytes = self.node(child)?;
            self.enter(bytes, depth, end)?;
        }
    }

    fn leaf(&mut self, logical: u64, at: usize) -> Result<Stretch, ReadError> {
        let Some(node) = self.path.last() else {
            return ReadError::damaged(self.ino, "its extent tree ends early");
        };
        let entry = &node.bytes[at..at + ENTRY];
        // Longer than the longest says that they are reserved and not written.
        let length = u32::from(get16(entry, 4));
        let written = length <= MAX_LENGTH;
        let length = u64::from(if written { length } else { length - MAX_LENGTH });
        let physical = u64::from(get32(entry, 8)) | u64::from(get16(entry, 6)) << 32;
        if length == 0 || logical + length > node.end {
            return ReadError::damaged(self.ino, "an extent of it has an impossible length");
        }
        if !self.reader.layout.holds(physical, length) {
            return ReadError::damaged(self.ino, "it has a block outside of the file system");
        }
        self.from = logical + length;
        Ok(Stretch {
            logical,
            length: length.min(self.blocks - logical),
            physical,
            written,
        })
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Stretch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if let Some(Err(_)) = step {
            self.path.clear();
        }
        step
    }
}
