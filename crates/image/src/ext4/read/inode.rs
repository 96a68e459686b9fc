//! One inode, as what it is.

use super::{ReadError, Reader};
use crate::ext4::checksum::{crc32c, inode_seed};
use crate::ext4::inode::{EXTENTS_FLAG, FAST_SYMLINK};
use crate::ext4::{get16, get32};
use crate::node::{Device, Time};

/// `EXT4_ENCRYPT_FL`.
const ENCRYPTED: u32 = 0x800;
/// `EXT4_INDEX_FL`.
const INDEXED: u32 = 0x1000;
/// `EXT4_INLINE_DATA_FL`.
const INLINE_DATA: u32 = 0x1000_0000;
/// Every inode has these bytes; what is beyond them is optional.
const BASE: usize = 128;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InodeKind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    CharDevice(Device),
    BlockDevice(Device),
}

/// An inode in use.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) ino: u32,
    pub(crate) kind: InodeKind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Its number of names, as it counts them.
    pub(crate) links: u16,
    /// In bytes.
    pub(crate) size: u64,
    /// Whether blocks of it may be an index of names.
    pub(super) indexed: bool,
    pub(super) has_extents: bool,
    pub(super) map: [u8; 60],
    /// The block of its attributes, 0 for none.
    pub(super) attribute_block: u64,
    /// What follows its fixed fields: more attributes.
    pub(super) rest: Vec<u8>,
    /// What checksums of its blocks start from.
    pub(super) seed: Option<u32>,
}

impl Reader {
    /// Reads an inode that a directory names.
    pub(crate) fn inode(&self, ino: u32) -> Result<Inode, ReadError> {
        let mut raw = vec![0; self.layout.inode_size];
        self.read(self.inode_offset(ino)?, &mut raw)?;
        let extra = match raw.len() {
            BASE => 0,
            _ => usize::from(get16(&raw, BASE)),
        };
        if extra > raw.len() - BASE || !extra.is_multiple_of(4) {
            return ReadError::damaged(ino, "its fields end outside of it");
        }
        let generation = get32(&raw, 100);
        let seed = self
            .layout
            .seed
            .map(|seed| inode_seed(seed, ino, generation));
        let links = get16(&raw, 26);
        if links == 0 {
            return ReadError::damaged(ino, "it is deleted, but has a name");
        }
        if let Some(seed) = seed
            && !has_right_checksum(&raw, extra, seed)
        {
            return ReadError::damaged(ino, "it has a wrong checksum");
        }
        let flags = get32(&raw, 32);
        let unsupported = |what| Err(ReadError::UnsupportedInode { ino, what });
        if flags & ENCRYPTED != 0 {
            return unsupported("it is encrypted");
        }
        if flags & INLINE_DATA != 0 {
            return unsupported("its content is inside of the inode (inline_data)");
        }
        let mut map = [0; 60];
        map.copy_from_slice(&raw[40..100]);
        let Some(kind) = kind(get16(&raw, 0), &map) else {
            return ReadError::damaged(ino, "it is of no type that there is");
        };
        let high = |at| u32::from(get16(&raw, at)) << 16;
        // The words of times are as long as the inode says that its fields go.
        let extra_time = if extra >= 12 { get32(&raw, 136) } else { 0 };
        Ok(Inode {
            ino,
            kind,
            mode: get16(&raw, 0) & 0o7777,
            uid: u32::from(get16(&raw, 2)) | high(120),
            gid: u32::from(get16(&raw, 24)) | high(122),
            mtime: time(get32(&raw, 16), extra_time),
            links,
            size: u64::from(get32(&raw, 4)) | u64::from(get32(&raw, 108)) << 32,
            indexed: flags & INDEXED != 0,
            has_extents: flags & EXTENTS_FLAG != 0,
            map,
            attribute_block: u64::from(get32(&raw, 104)) | u64::from(get16(&raw, 118)) << 32,
            rest: raw.split_off(BASE + extra),
            seed,
        })
    }

    /// Where a symbolic link points.
    pub(crate) fn symlink_target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let length = usize::try_from(inode.size).unwrap_or(usize::MAX);
        // Linux has no longer paths, so that no link can have a block of 4096 bytes full.
        if length == 0 || length > 4095 || length >= self.layout.block_size {
            return ReadError::damaged(inode.ino, "its target is empty or too long");
        }
        let mut target = match length < FAST_SYMLINK && !inode.has_extents {
            true => inode.map.to_vec(),
            false => {
                let first = self.extents(inode)?.next().transpose()?;
                match first {
                    Some(stretch) if stretch.logical == 0 && stretch.written => {
                        self.block(inode.ino, stretch.physical)?
                    }
                    _ => return ReadError::damaged(inode.ino, "its target is missing"),
                }
            }
        };
        target.truncate(length);
        match target.contains(&0) {
            true => ReadError::damaged(inode.ino, "its target contains NUL"),
            false => Ok(target),
        }
    }
}

/// Of the whole inode, with zeros for the checksum. Its upper half is there if the fields go so far.
fn has_right_checksum(raw: &[u8], extra: usize, seed: u32) -> bool {
    let mut zeroed = raw.to_vec();
    zeroed[124..126].fill(0);
    let mut stored = u32::from(get16(raw, 124));
    let whole = extra >= 4;
    if whole {
        zeroed[130..132].fill(0);
        stored |= u32::from(get16(raw, 130)) << 16;
    }
    let found = crc32c(seed, &zeroed);
    stored == if whole { found } else { found & 0xffff }
}

fn kind(mode: u16, map: &[u8; 60]) -> Option<InodeKind> {
    Some(match mode & 0o170_000 {
        0o010_000 => InodeKind::Fifo,
        0o020_000 => InodeKind::CharDevice(device(map)?),
        0o040_000 => InodeKind::Directory,
        0o060_000 => InodeKind::BlockDevice(device(map)?),
        0o100_000 => InodeKind::File,
        0o120_000 => InodeKind::Symlink,
        0o140_000 => InodeKind::Socket,
        _ => return None,
    })
}

/// The old short form, or where that is empty the new one.
fn device(map: &[u8; 60]) -> Option<Device> {
    let (old, new) = (get32(map, 0), get32(map, 4));
    let (major, minor) = match old {
        0 => (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00),
        _ => (old >> 8 & 0xff, old & 0xff),
    };
    Device::new(major, minor).ok()
}

/// 32 bits of seconds with their sign, two more above them, and nanoseconds.
fn time(seconds: u32, extra: u32) -> Time {
    let epoch = i64::from(extra & 3) << 32;
    Time {
        secs: i64::from(seconds.cast_signed()) + epoch,
        // 30 bits hold more than there are; a clock that was set oddly is no reason to refuse a file.
        nanos: (extra >> 2).min(999_999_999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::inode::device_map;
    use proptest::prelude::*;

    #[test]
    fn times_before_1970_and_after_2038() {
        let at = |seconds, extra| {
            let Time { secs, nanos } = time(seconds, extra);
            (secs, nanos)
        };
        assert_eq!(at(0, 5 << 2), (0, 5));
        assert_eq!(at(u32::MAX, 5 << 2), (-1, 5));
        assert_eq!(at(1 << 31, 1 | 5 << 2), (1 << 31, 5));
        assert_eq!(at((1 << 31) - 1, 3), ((1 << 34) - (1 << 31) - 1, 0));
        assert_eq!(at(0, u32::MAX).1, 999_999_999);
    }

    proptest! {
        #[test]
        fn device_numbers_come_back(major in 0u32..1 << 12, minor in 0u32..1 << 20) {
            let given = Device::new(major, minor).unwrap();
            prop_assert_eq!(device(&device_map(given)), Some(given));
        }
    }
}
