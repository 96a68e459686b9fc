//! Block groups: which blocks are taken, and the descriptors and bitmaps that say so.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::checksum::crc32c;
use super::geometry::{BLOCKS_PER_GROUP, has_superblock};
use super::superblock::RawSuperblock;
use super::{get16, get32, low16, low32, put16};
use crate::error::ImportError;
use crate::spool::{BLOCK, BLOCK_U64};

/// Length of a group descriptor with the 64-bit feature, in bytes.
pub(super) const DESCRIPTOR: usize = 64;
const WORDS_PER_GROUP: usize = 512;
/// Descriptor flags: the bitmaps on disk are not valid, everything is free.
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;

/// Where a group's metadata is, in blocks.
#[derive(Debug, Clone, Copy)]
struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    flags: u16,
    /// A block of this group was taken or given back.
    touched: bool,
    directories: u32,
}

/// The allocation state of a file system.
pub(super) struct Groups {
    raw: Vec<[u8; DESCRIPTOR]>,
    groups: Vec<Group>,
    /// One bit a block; the bits after the last block are set.
    taken: Vec<u64>,
    blocks: u64,
    inodes_per_group: u32,
    /// Where the search for free blocks goes on.
    cursor: u64,
    seed: u32,
}

impl Groups {
    /// Reads the descriptors and bitmaps of a freshly made file system.
    pub(super) fn load(
        file: &File,
        superblock: &RawSuperblock,
        blocks: u64,
        seed: u32,
    ) -> io::Result<Self> {
        let count = blocks.div_ceil(BLOCKS_PER_GROUP);
        let inodes_per_group = superblock.inodes_per_group();
        let mut raw = Vec::new();
        let mut groups = Vec::new();
        for index in 0..count {
            let mut descriptor = [0; DESCRIPTOR];
            file.read_exact_at(&mut descriptor, BLOCK_U64 + index * DESCRIPTOR as u64)?;
            groups.push(Group::parse(&descriptor));
            raw.push(descriptor);
        }
        let mut this = Self {
            raw,
            groups,
            taken: vec![0; WORDS_PER_GROUP * usize::try_from(count).unwrap_or(0)],
            blocks,
            inodes_per_group,
            cursor: 0,
            seed,
        };
        let descriptor_blocks = (count * DESCRIPTOR as u64).div_ceil(BLOCK_U64);
        let table = u64::from(inodes_per_group) * super::inode::SIZE as u64 / BLOCK_U64;
        this.take(blocks, count * BLOCKS_PER_GROUP - blocks);
        for (number, index) in (0..count).zip(0usize..) {
            if has_superblock(number) {
                let copies = 1 + descriptor_blocks + u64::from(superblock.reserved_gdt_blocks());
                this.take(number * BLOCKS_PER_GROUP, copies);
            }
            let group = this.groups[index];
            this.take(group.block_bitmap, 1);
            this.take(group.inode_bitmap, 1);
            this.take(group.inode_table, table);
            if group.flags & BLOCK_UNINIT == 0 {
                let mut bitmap = [0; BLOCK];
                file.read_exact_at(&mut bitmap, group.block_bitmap * BLOCK_U64)?;
                let words = &mut this.taken[index * WORDS_PER_GROUP..];
                for (word, bytes) in words.iter_mut().zip(bitmap.chunks_exact(8)) {
                    *word |= u64::from(get32(bytes, 0)) | u64::from(get32(bytes, 4)) << 32;
                }
            }
        }
        for group in &mut this.groups {
            group.touched = false;
        }
        Ok(this)
    }

    /// Where an inode is, in bytes; `None` when there is no such inode.
    pub(super) fn inode_offset(&self, ino: u32) -> Option<u64> {
        let index = ino.checked_sub(1)?;
        let group = self.groups.get((index / self.inodes_per_group) as usize)?;
        let within = u64::from(index % self.inodes_per_group);
        Some(group.inode_table * BLOCK_U64 + within * super::inode::SIZE as u64)
    }

    /// Counts a directory in the group of its inode.
    pub(super) fn count_directory(&mut self, ino: u32) {
        let index = (ino - 1) / self.inodes_per_group;
        if let Some(group) = self.groups.get_mut(index as usize) {
            group.directories += 1;
        }
    }

    /// Takes up to `want` free blocks that are contiguous: their first and their number.
    pub(super) fn allocate(&mut self, want: u64) -> Result<(u64, u64), ImportError> {
        let full = ImportError::TooLarge("the computed file system size was too small");
        let mut start = self.cursor;
        while start < self.blocks && self.is_taken(start) {
            let word = self.taken[word(start)] >> (start % 64);
            // A word that is full from here on is skipped whole.
            let ones = u64::from(word.trailing_ones()).clamp(1, 64 - start % 64);
            start += ones;
        }
        let mut end = start;
        while end < self.blocks && end - start < want && !self.is_taken(end) {
            end += 1;
        }
        if end == start {
            return Err(full);
        }
        self.take(start, end - start);
        self.cursor = end;
        Ok((start, end - start))
    }

    /// Gives blocks back; the search starts over so that they are used.
    pub(super) fn free(&mut self, start: u64, count: u64) {
        for block in start..start.saturating_add(count).min(self.blocks) {
            self.taken[word(block)] &= !(1 << (block % 64));
            self.touch(block);
        }
        self.cursor = 0;
    }

    fn take(&mut self, start: u64, count: u64) {
        for block in start..start + count {
            if let Some(bits) = self.taken.get_mut(word(block)) {
                *bits |= 1 << (block % 64);
            }
            self.touch(block);
        }
    }

    fn touch(&mut self, block: u64) {
        let index = usize::try_from(block / BLOCKS_PER_GROUP).unwrap_or(usize::MAX);
        if let Some(group) = self.groups.get_mut(index) {
            group.touched = true;
        }
    }

    fn is_taken(&self, block: u64) -> bool {
        self.taken[word(block)] & 1 << (block % 64) != 0
    }

    /// Writes bitmaps and descriptors, given that the inodes 1 to `last_ino` are in use, and returns
    /// the numbers of free blocks and free inodes.
    pub(super) fn store(&mut self, file: &File, last_ino: u32) -> io::Result<(u64, u64)> {
        let (mut free_blocks, mut free_inodes) = (0, 0);
        let mut first_ino = 0u64;
        for (index, number) in (0..self.groups.len()).zip(0u32..) {
            let words = &self.taken[index * WORDS_PER_GROUP..(index + 1) * WORDS_PER_GROUP];
            let group = self.groups[index];
            let taken: u32 = words.iter().map(|word| word.count_ones()).sum();
            let blocks_left = u32::try_from(BLOCKS_PER_GROUP).unwrap_or(0) - taken;
            let used = u64::from(last_ino)
                .saturating_sub(first_ino)
                .min(self.inodes_per_group.into());
            let inodes_left = self.inodes_per_group - low32(used);
            free_blocks += u64::from(blocks_left);
            free_inodes += u64::from(inodes_left);
            first_ino += u64::from(self.inodes_per_group);
            if !group.touched && used == 0 {
                continue;
            }
            let block_bitmap: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let inode_bitmap = inode_bitmap(used, self.inodes_per_group);
            file.write_all_at(&block_bitmap, group.block_bitmap * BLOCK_U64)?;
            file.write_all_at(&inode_bitmap, group.inode_bitmap * BLOCK_U64)?;
            let raw = &mut self.raw[index];
            put_halves(raw, [12, 44], blocks_left);
            put_halves(raw, [14, 46], inodes_left);
            put_halves(raw, [16, 48], group.directories);
            put16(raw, 18, group.flags & !(INODE_UNINIT | BLOCK_UNINIT));
            put_halves(raw, [24, 56], crc32c(self.seed, &block_bitmap));
            let counted = (self.inodes_per_group / 8) as usize;
            put_halves(raw, [26, 58], crc32c(self.seed, &inode_bitmap[..counted]));
            put_halves(raw, [28, 50], inodes_left);
            put16(raw, 30, 0);
            let checksum = crc32c(crc32c(self.seed, &number.to_le_bytes()), raw);
            put16(raw, 30, low16(checksum.into()));
            file.write_all_at(raw, BLOCK_U64 + u64::from(number) * DESCRIPTOR as u64)?;
        }
        Ok((free_blocks, free_inodes))
    }
}

impl Group {
    fn parse(raw: &[u8; DESCRIPTOR]) -> Self {
        let block = |low, high| u64::from(get32(raw, low)) | u64::from(get32(raw, high)) << 32;
        Self {
            block_bitmap: block(0, 32),
            inode_bitmap: block(4, 36),
            inode_table: block(8, 40),
            flags: get16(raw, 18),
            touched: false,
            directories: 0,
        }
    }
}

/// The first `used` bits set, and those beyond the group's inodes, which do not exist.
fn inode_bitmap(used: u64, inodes_per_group: u32) -> Vec<u8> {
    let set = |bit: u64| bit < used || bit >= u64::from(inodes_per_group);
    (0..BLOCK_U64)
        .map(|byte| (0..8).fold(0, |bits, bit| bits | u8::from(set(byte * 8 + bit)) << bit))
        .collect()
}

fn put_halves(raw: &mut [u8], [low, high]: [usize; 2], value: u32) {
    put16(raw, low, low16(value.into()));
    put16(raw, high, low16(u64::from(value) >> 16));
}

fn word(block: u64) -> usize {
    usize::try_from(block / 64).unwrap_or(usize::MAX)
}
