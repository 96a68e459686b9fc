//! The names of a directory.
//!
//! Every directory can be read as a list, one with an index too: blocks of the index look like blocks
//! without names. Nothing of an index is used, so nothing of it but its checksum has to be right.

use std::ops::RangeInclusive;

use super::{Inode, ReadError, Reader};
use crate::ext4::checksum::crc32c;
use crate::ext4::dirent::{TAIL, TAIL_TYPE};
use crate::ext4::{get16, get32};

/// Inode, length and kind before each name.
const HEADER: usize = 8;
/// A hash and a block.
const INDEX_ENTRY: usize = 8;

/// One name and its inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: Box<[u8]>,
    pub(crate) ino: u32,
}

/// What is known of a directory while its blocks are read.
struct Listing<'a> {
    directory: &'a Inode,
    parent: u32,
    /// What a name may lead to: no inode that the file system keeps for itself.
    inodes: RangeInclusive<u32>,
    /// How many of `.` and `..` have been seen.
    own: usize,
    names: Vec<Name>,
}

impl Reader {
    /// The names in a directory without `.` and `..`, sorted by bytes. `parent` must be what `..` says;
    /// `admit` is given the length of each name, and says when there are too many.
    pub(crate) fn names(
        &self,
        directory: &Inode,
        parent: u32,
        admit: &mut dyn FnMut(usize) -> Result<(), ReadError>,
    ) -> Result<Vec<Name>, ReadError> {
        let ino = directory.ino;
        let blocks = directory.size / self.block_size();
        if blocks == 0 || !directory.size.is_multiple_of(self.block_size()) {
            return ReadError::damaged(ino, "its size is not that of a directory");
        }
        let mut listing = Listing {
            directory,
            parent,
            inodes: self.layout.first_inode..=self.layout.inodes,
            own: 0,
            names: Vec::new(),
        };
        let mut next = 0;
        for stretch in self.extents(directory)? {
            let stretch = stretch?;
            if stretch.logical != next || !stretch.written {
                break;
            }
            for index in 0..stretch.length {
                let left = self.directory_blocks.get().checked_sub(1);
                let Some(left) = left else {
                    return ReadError::damaged(ino, "directories share their blocks");
                };
                self.directory_blocks.set(left);
                let block = self.block(ino, stretch.physical + index)?;
                let names = listing.usable(&block)?;
                listing.add(names, admit)?;
            }
            next += stretch.length;
        }
        if next < blocks {
            return ReadError::damaged(ino, "its list of names has a hole");
        }
        let mut names = listing.names;
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if names.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return ReadError::damaged(ino, "it has a name twice");
        }
        Ok(names)
    }
}

impl Listing<'_> {
    fn damaged<T>(&self, why: &'static str) -> Result<T, ReadError> {
        ReadError::damaged(self.directory.ino, why)
    }

    /// The part of a block that has names, after a look at its checksum.
    fn usable<'b>(&self, block: &'b [u8]) -> Result<&'b [u8], ReadError> {
        let Some(seed) = self.directory.seed else {
            return Ok(block);
        };
        if self.is_index(block) {
            // It may end in what it was before it became an index: the end of a list of names.
            return match has_right_index_checksum(block, self.own == 0, seed) {
                true => Ok(block),
                false => self.damaged("its index of names has a wrong checksum"),
            };
        }
        let (names, tail) = block.split_at(block.len() - TAIL);
        // It has the form of an entry without a name.
        if get32(tail, 0) != 0 || tail[4..8] != [12, 0, 0, TAIL_TYPE] {
            return self.damaged("its list of names lacks a checksum");
        }
        match crc32c(seed, names) == get32(tail, 8) {
            true => Ok(names),
            false => self.damaged("its list of names has a wrong checksum"),
        }
    }

    /// Whether a block is part of an index: the first one of such a directory, or one that looks like a
    /// single entry without a name.
    fn is_index(&self, block: &[u8]) -> bool {
        let empty = get32(block, 0) == 0 && usize::from(get16(block, 4)) == block.len();
        self.directory.indexed && (empty || self.own == 0)
    }

    /// Adds the names of one block.
    fn add(
        &mut self,
        mut block: &[u8],
        admit: &mut dyn FnMut(usize) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        while !block.is_empty() {
            if block.len() < HEADER {
                return self.damaged("an entry of it leaves its block");
            }
            let (ino, length) = (get32(block, 0), usize::from(get16(block, 4)));
            let name_length = usize::from(block[6]);
            if length < 12 || !length.is_multiple_of(4) || length > block.len() {
                return self.damaged("an entry of it leaves its block");
            }
            let (entry, rest) = block.split_at(length);
            block = rest;
            if self.own < 2 || ino != 0 {
                let Some(name) = entry.get(HEADER..HEADER + name_length) else {
                    return self.damaged("a name in it is longer than its entry");
                };
                self.name(name, ino, admit)?;
            }
        }
        Ok(())
    }

    fn name(
        &mut self,
        name: &[u8],
        ino: u32,
        admit: &mut dyn FnMut(usize) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let own = [(&b"."[..], self.directory.ino), (b"..", self.parent)];
        if let Some(expected) = own.get(self.own) {
            self.own += 1;
            return match *expected == (name, ino) {
                true => Ok(()),
                false => self.damaged("its own \".\" or \"..\" is missing or leads elsewhere"),
            };
        }
        match name {
            b"" | b"." | b".." => return self.damaged("a name in it is empty, \".\" or \"..\""),
            _ if name.contains(&b'/') || name.contains(&0) => {
                return self.damaged("a name in it contains a slash or NUL");
            }
            _ if !self.inodes.contains(&ino) => {
                return self.damaged("a name in it leads to an inode that no file can have");
            }
            _ => {}
        }
        admit(name.len())?;
        self.names.push(Name {
            name: name.into(),
            ino,
        });
        Ok(())
    }
}

/// Of what comes before the used entries and of those; it is after the room for all.
fn has_right_index_checksum(block: &[u8], is_root: bool, seed: u32) -> bool {
    // After `.`, `..` and what the index says of itself, or after the entry without a name.
    let start = if is_root { 32 } else { 8 };
    let (limit, count) = (get16(block, start), get16(block, start + 2));
    let used = start + INDEX_ENTRY * usize::from(count);
    let tail = start + INDEX_ENTRY * usize::from(limit);
    let (Some(used), Some(tail)) = (block.get(..used), block.get(tail..tail + 8)) else {
        return false;
    };
    let checksum = crc32c(crc32c(seed, used), &tail[..4]);
    crc32c(checksum, &[0; 4]) == get32(tail, 4)
}
