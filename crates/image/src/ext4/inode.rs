//! One inode's 256 bytes.

use super::checksum::crc32c;
use super::xattr::{Attributes, IN_INODE};
use super::{low16, low32, put16, put32};
use crate::node::{Device, Kind, Meta, Time};
use crate::spool::BLOCK_U64;

/// Length of an inode, in bytes.
pub(super) const SIZE: usize = 256;
/// Length of the fields after the first 128 bytes that are in use.
const EXTRA_SIZE: u16 = 32;
/// `EXT4_EXTENTS_FL`.
pub(super) const EXTENTS_FLAG: u32 = 0x8_0000;
/// Symbolic link targets shorter than this are kept in the inode.
pub(super) const FAST_SYMLINK: usize = 60;

/// What an inode's block map holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum BlockMap {
    /// An extent tree.
    Extents([u8; 60]),
    /// A link target, a device number, or nothing.
    Inline([u8; 60]),
}

/// Everything that an inode says.
#[derive(Debug)]
pub(super) struct Inode<'a> {
    pub(super) meta: &'a Meta,
    /// `S_IFMT` bits.
    pub(super) file_type: u16,
    pub(super) links: u16,
    /// In bytes.
    pub(super) size: u64,
    /// Blocks of data, extent tree and attributes, 4096 bytes each.
    pub(super) blocks: u64,
    pub(super) map: BlockMap,
    pub(super) attributes: &'a Attributes,
    /// The attributes' own block, 0 for none.
    pub(super) attribute_block: u64,
}

impl Inode<'_> {
    /// Encodes with the checksum; `seed` is the inode's own.
    pub(super) fn encode(&self, seed: u32) -> [u8; SIZE] {
        let mut raw = [0; SIZE];
        put16(&mut raw, 0, self.file_type | (self.meta.mode & 0o7777));
        put16(&mut raw, 2, low16(self.meta.uid.into()));
        put32(&mut raw, 4, low32(self.size));
        put16(&mut raw, 24, low16(self.meta.gid.into()));
        put16(&mut raw, 26, self.links);
        let sectors = self.blocks * (BLOCK_U64 / 512);
        put32(&mut raw, 28, low32(sectors));
        let (flags, map) = match &self.map {
            BlockMap::Extents(map) => (EXTENTS_FLAG, map),
            BlockMap::Inline(map) => (0, map),
        };
        put32(&mut raw, 32, flags);
        raw[40..100].copy_from_slice(map);
        put32(&mut raw, 104, low32(self.attribute_block));
        put32(&mut raw, 108, low32(self.size >> 32));
        put16(&mut raw, 116, low16(sectors >> 32));
        put16(&mut raw, 118, low16(self.attribute_block >> 32));
        put16(&mut raw, 120, low16(u64::from(self.meta.uid) >> 16));
        put16(&mut raw, 122, low16(u64::from(self.meta.gid) >> 16));
        put16(&mut raw, 128, EXTRA_SIZE);
        // Access, change and creation are the modification time: nothing else is both in every source
        // and the same for every import.
        let (seconds, extra) = encode_time(self.meta.mtime);
        for at in [8, 12, 16, 144] {
            put32(&mut raw, at, seconds);
        }
        for at in [132, 136, 140, 148] {
            put32(&mut raw, at, extra);
        }
        if self.attribute_block == 0 && !self.attributes.is_empty() {
            self.attributes.encode_in_inode(&mut raw[SIZE - IN_INODE..]);
        }
        let checksum = crc32c(seed, &raw);
        put16(&mut raw, 124, low16(checksum.into()));
        put16(&mut raw, 130, low16(u64::from(checksum) >> 16));
        raw
    }
}

/// 34 bits of seconds around 1970 and 30 of nanoseconds, in two words; clamped to that range.
fn encode_time(time: Time) -> (u32, u32) {
    const FIRST: i64 = i32::MIN as i64;
    const LAST: i64 = FIRST + (1 << 34) - 1;
    let seconds = time.secs.clamp(FIRST, LAST);
    let low = low32(seconds.cast_unsigned());
    let epoch = low32(((seconds - FIRST) >> 32).cast_unsigned());
    (low, epoch | time.nanos << 2)
}

/// `S_IFMT` bits of a node.
pub(super) fn file_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice(_) => 0o020_000,
        Kind::Directory(_) => 0o040_000,
        Kind::BlockDevice(_) => 0o060_000,
        Kind::File { .. } => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
    }
}

/// `EXT4_FT_*` of a node.
pub(super) fn directory_file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory(_) => super::dirent::DIRECTORY,
        Kind::CharDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// A device number in the block map: the old short form where it fits, as the kernel writes it.
pub(super) fn device_map(device: Device) -> [u8; 60] {
    let mut map = [0; 60];
    let Device { major, minor } = device;
    if major < 256 && minor < 256 {
        put32(&mut map, 0, major << 8 | minor);
    } else {
        put32(
            &mut map,
            4,
            (minor & 0xff) | major << 8 | (minor & !0xff) << 12,
        );
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038() {
        let at = |secs| encode_time(Time { secs, nanos: 5 });
        assert_eq!(at(0), (0, 5 << 2));
        assert_eq!(at(-1), (u32::MAX, 5 << 2));
        assert_eq!(at(1 << 31), (1 << 31, 1 | 5 << 2));
        assert_eq!(at((1 << 31) - 1), ((1 << 31) - 1, 5 << 2));
        assert_eq!(at(i64::MAX), ((1 << 31) - 1, 3 | 5 << 2));
        assert_eq!(at(i64::MIN), (1 << 31, 5 << 2));
    }

    #[test]
    fn device_numbers_old_and_new() {
        let map = |major, minor| device_map(Device::new(major, minor).unwrap());
        assert_eq!(map(1, 3)[..8], [3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(map(259, 0x1_2345)[..8], [0, 0, 0, 0, 0x45, 3, 0x31, 0x12]);
    }
}
