//! What the superblock and the group descriptors say, held to what can be.

use super::{ReadError, Reader};
use crate::ext4::checksum::{crc32c, file_system_seed};
use crate::ext4::geometry::has_superblock;
use crate::ext4::superblock::RawSuperblock;
use crate::ext4::{get16, get32, low16};

/// Where the fields are that only this module reads.
mod at {
    pub(super) const STATE: usize = 58;
    pub(super) const REVISION: usize = 76;
    pub(super) const LAST_ORPHAN: usize = 232;
    pub(super) const FIRST_META_GROUP: usize = 260;
    pub(super) const CHECKSUM_TYPE: usize = 373;
    pub(super) const BACKUP_GROUPS: [usize; 2] = [588, 592];
    pub(super) const CHECKSUM_SEED: usize = 624;
    pub(super) const CHECKSUM: usize = 1020;
}

/// `EXT4_VALID_FS`, and nothing of errors or orphans.
const CLEAN: u16 = 1;
const CRC32C: u8 = 1;

mod compat {
    pub(super) const SPARSE_SUPER2: u32 = 0x200;
}

mod incompat {
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const WIDE: u32 = 0x80;
    pub(super) const CHECKSUM_SEED: u32 = 0x2000;
    /// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
    /// inline_data, encrypt, casefold. Of ea_inode, inline_data and encrypt only that they may be
    /// there: each inode that makes use of them is refused or reported by itself.
    pub(super) const KNOWN: u32 = 0x3_e7d6;
}

mod ro_compat {
    pub(super) const SPARSE_SUPER: u32 = 0x1;
    pub(super) const METADATA_CSUM: u32 = 0x400;
    pub(super) const ORPHAN_PRESENT: u32 = 0x1_0000;
}

/// Groups that have a copy of the superblock.
enum Copies {
    All,
    Sparse,
    These([u32; 2]),
}

/// Where things are.
pub(super) struct Layout {
    pub(super) block_size: usize,
    pub(super) blocks: u64,
    first_block: u64,
    blocks_per_group: u64,
    pub(super) inodes: u32,
    pub(super) first_inode: u32,
    inodes_per_group: u32,
    pub(super) inode_size: usize,
    descriptor_size: usize,
    /// Blocks of descriptors from this one on are in their own groups.
    first_meta_group: Option<u32>,
    copies: Copies,
    /// What checksums start from; `None` where there are none.
    pub(super) seed: Option<u32>,
}

impl Layout {
    pub(super) fn parse(raw: &RawSuperblock) -> Result<Self, ReadError> {
        let wrong = |why| Err(ReadError::NotExt4(why));
        let summary = raw.parse().map_err(ReadError::NotExt4)?;
        let bytes = raw.bytes();
        let [compat, incompat, ro_compat] = raw.features();
        let has_checksums = ro_compat & ro_compat::METADATA_CSUM != 0;
        if has_checksums && crc32c(!0, &bytes[..at::CHECKSUM]) != get32(bytes, at::CHECKSUM) {
            return wrong("its superblock has a wrong checksum");
        }
        refuse_unknown(bytes, incompat, has_checksums)?;
        if summary.block_size > 4096 {
            return Err(ReadError::Unsupported("blocks of more than 4096 bytes"));
        }
        let unclean = incompat & incompat::RECOVER != 0
            || ro_compat & ro_compat::ORPHAN_PRESENT != 0
            || get16(bytes, at::STATE) != CLEAN
            || get32(bytes, at::LAST_ORPHAN) != 0;
        if unclean {
            return Err(ReadError::Unclean);
        }
        let wide = incompat & incompat::WIDE != 0;
        let layout = Self {
            block_size: usize::try_from(summary.block_size).unwrap_or(0),
            blocks: summary.blocks,
            first_block: raw.first_block().into(),
            blocks_per_group: raw.blocks_per_group().into(),
            inodes: summary.inodes,
            first_inode: raw.first_inode(),
            inodes_per_group: raw.inodes_per_group(),
            inode_size: raw.inode_size().into(),
            descriptor_size: if wide {
                raw.descriptor_size().into()
            } else {
                32
            },
            first_meta_group: (incompat & incompat::META_BG != 0)
                .then(|| get32(bytes, at::FIRST_META_GROUP)),
            copies: match () {
                () if compat & compat::SPARSE_SUPER2 != 0 => {
                    Copies::These(at::BACKUP_GROUPS.map(|field| get32(bytes, field)))
                }
                () if ro_compat & ro_compat::SPARSE_SUPER != 0 => Copies::Sparse,
                () => Copies::All,
            },
            seed: has_checksums.then(|| match incompat & incompat::CHECKSUM_SEED {
                0 => file_system_seed(&summary.uuid),
                _ => get32(bytes, at::CHECKSUM_SEED),
            }),
        };
        layout.check()?;
        Ok(layout)
    }

    /// Refuses numbers that cannot be together; everything after this computes with them.
    fn check(&self) -> Result<(), ReadError> {
        let blocks = self.blocks.saturating_sub(self.first_block);
        let sane =
            |value: usize, least, most| value.is_power_of_two() && (least..=most).contains(&value);
        let why = match () {
            () if self.first_block > 1 || blocks == 0 => "its first block is out of range",
            () if self.blocks > 1 << 48 => "it has too many blocks",
            () if self.blocks_per_group < 256 => "its groups are too small",
            () if !sane(self.inode_size, 128, self.block_size) => "its inode size is out of range",
            () if !sane(self.descriptor_size, 32, 1024) => "its group descriptors have an odd size",
            () if self.inodes_per_group == 0 || self.first_inode < 11 => {
                "its inodes are out of range"
            }
            () if blocks.div_ceil(self.blocks_per_group) * u64::from(self.inodes_per_group)
                != u64::from(self.inodes) =>
            {
                "its number of inodes is not that of its groups"
            }
            () => return Ok(()),
        };
        Err(ReadError::NotExt4(why))
    }

    /// Length of a block in bytes, for arithmetic on offsets.
    pub(super) fn block_bytes(&self) -> u64 {
        self.block_size as u64
    }

    /// Whether these blocks are in the file system, the one of the superblock not counted.
    pub(super) fn holds(&self, first: u64, count: u64) -> bool {
        let end = first.checked_add(count);
        first > self.first_block && end.is_some_and(|end| end <= self.blocks)
    }

    fn has_copy(&self, group: u32) -> bool {
        match self.copies {
            Copies::All => true,
            Copies::Sparse => has_superblock(group.into()),
            Copies::These(groups) => group == 0 || groups.contains(&group),
        }
    }

    /// Where a group's descriptor is, in bytes.
    fn descriptor_offset(&self, group: u32) -> u64 {
        let in_block = u32::try_from(self.block_size / self.descriptor_size).unwrap_or(1);
        let table_block = group / in_block;
        let block = match self.first_meta_group {
            Some(first) if table_block >= first => {
                // The first group of those that the block describes has it itself.
                let own = table_block * in_block;
                let start = self.first_block + u64::from(own) * self.blocks_per_group;
                let odd = self.block_size == 1024 && table_block == 0 && self.first_block == 0;
                start + u64::from(self.has_copy(own)) + u64::from(odd)
            }
            // They follow the superblock, which is at byte 1024.
            _ => 1024 / self.block_bytes() + 1 + u64::from(table_block),
        };
        block * self.block_bytes() + u64::from(group % in_block) * self.descriptor_size as u64
    }
}

/// Features without which nothing can be read right.
fn refuse_unknown(bytes: &[u8], incompat: u32, has_checksums: bool) -> Result<(), ReadError> {
    if get32(bytes, at::REVISION) != 1 {
        return Err(ReadError::Unsupported("the first revision of ext2"));
    }
    if incompat & !incompat::KNOWN != 0 {
        return Err(ReadError::Unsupported("a feature that is not known here"));
    }
    if has_checksums && bytes[at::CHECKSUM_TYPE] != CRC32C {
        return Err(ReadError::Unsupported("checksums of an unknown kind"));
    }
    Ok(())
}

impl Reader {
    /// Where an inode is, in bytes. `ino` must be one that the superblock counts.
    pub(super) fn inode_offset(&self, ino: u32) -> Result<u64, ReadError> {
        let layout = &self.layout;
        if ino == 0 || ino > layout.inodes {
            return ReadError::damaged(ino, "its number is out of range");
        }
        let (group, within) = (
            (ino - 1) / layout.inodes_per_group,
            (ino - 1) % layout.inodes_per_group,
        );
        let table = match self.last_group.get() {
            (last, table) if last == group => table,
            _ => self.inode_table(ino, group)?,
        };
        self.last_group.set((group, table));
        Ok(table * layout.block_bytes() + u64::from(within) * layout.inode_size as u64)
    }

    /// The block where a group's inodes start.
    fn inode_table(&self, ino: u32, group: u32) -> Result<u64, ReadError> {
        let layout = &self.layout;
        let offset = layout.descriptor_offset(group);
        if offset >= self.size() {
            return ReadError::damaged(ino, "the descriptor of its group is out of range");
        }
        let mut raw = vec![0; layout.descriptor_size];
        self.read(offset, &mut raw)?;
        if let Some(seed) = layout.seed {
            let stored = get16(&raw, 30);
            raw[30..32].fill(0);
            let checksum = crc32c(crc32c(seed, &group.to_le_bytes()), &raw);
            if low16(checksum.into()) != stored {
                return ReadError::damaged(ino, "the descriptor of its group has a wrong checksum");
            }
        }
        let high = if raw.len() >= 64 { get32(&raw, 40) } else { 0 };
        let table = u64::from(get32(&raw, 8)) | u64::from(high) << 32;
        let bytes = u64::from(layout.inodes_per_group) * layout.inode_size as u64;
        match layout.holds(table, bytes.div_ceil(layout.block_bytes())) {
            true => Ok(table),
            false => ReadError::damaged(ino, "the inodes of its group are out of range"),
        }
    }
}
