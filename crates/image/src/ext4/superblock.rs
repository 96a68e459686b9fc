//! The superblock: reading it, and the fields that populating changes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::checksum::crc32c;
use super::{get16, get32, low32, put16, put32};

/// Where it is in every ext4 file system, in bytes.
const OFFSET: u64 = 1024;
/// Its length in bytes.
const LENGTH: usize = 1024;
const MAGIC: u16 = 0xef53;
const FEATURE_INCOMPAT_64BIT: u32 = 0x80;

mod at {
    pub(super) const INODES: usize = 0;
    pub(super) const BLOCKS_LOW: usize = 4;
    pub(super) const FREE_BLOCKS_LOW: usize = 12;
    pub(super) const FREE_INODES: usize = 16;
    pub(super) const FIRST_BLOCK: usize = 20;
    pub(super) const LOG_BLOCK_SIZE: usize = 24;
    pub(super) const BLOCKS_PER_GROUP: usize = 32;
    pub(super) const INODES_PER_GROUP: usize = 40;
    pub(super) const MAGIC: usize = 56;
    pub(super) const FIRST_INODE: usize = 84;
    pub(super) const INODE_SIZE: usize = 88;
    pub(super) const FEATURE_COMPAT: usize = 92;
    pub(super) const FEATURE_INCOMPAT: usize = 96;
    pub(super) const FEATURE_RO_COMPAT: usize = 100;
    pub(super) const UUID: usize = 104;
    pub(super) const RESERVED_GDT_BLOCKS: usize = 206;
    pub(super) const DESCRIPTOR_SIZE: usize = 254;
    pub(super) const BLOCKS_HIGH: usize = 336;
    pub(super) const FREE_BLOCKS_HIGH: usize = 344;
    pub(super) const CHECKSUM: usize = 1020;
}

/// What an ext4 superblock says about the whole file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Block size, in bytes.
    pub block_size: u64,
    /// Size of the file system, in blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Number of inodes.
    pub inodes: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// Its UUID.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// Size of the file system in bytes: a disk must be at least this large.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    /// Bytes in use, the file system's own metadata included.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.blocks
            .saturating_sub(self.free_blocks)
            .saturating_mul(self.block_size)
    }
}

/// Why a file is no ext4 image.
#[derive(Debug, thiserror::Error)]
pub enum ReadSuperblockError {
    /// It could not be read.
    #[error("cannot read the superblock of \"{}\"", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is no ext4 file system.
    #[error("\"{}\" is not an ext4 image: {why}", path.display())]
    NotExt4 {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

/// Reads the superblock of an image.
///
/// # Errors
/// When the file cannot be read, is too short, or has no ext4 in it.
pub fn read_superblock(path: &Path) -> Result<Superblock, ReadSuperblockError> {
    let not_ext4 = |why| ReadSuperblockError::NotExt4 {
        path: path.to_owned(),
        why,
    };
    let read = File::open(path).and_then(|file| RawSuperblock::read(&file));
    let raw = match read {
        Ok(raw) => raw,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(not_ext4("it is too short"));
        }
        Err(source) => {
            return Err(ReadSuperblockError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    raw.parse().map_err(not_ext4)
}

/// The superblock of an open image, and its inodes in use beside those that every file system has; or
/// why it has none.
pub(crate) fn inspect(file: &File) -> io::Result<Result<(Superblock, u64), &'static str>> {
    let raw = RawSuperblock::read(file)?;
    Ok(raw.parse().map(|superblock| {
        let reserved = raw.first_inode().saturating_sub(1);
        let used = superblock.inodes.saturating_sub(superblock.free_inodes);
        (superblock, u64::from(used.saturating_sub(reserved)))
    }))
}

/// The superblock's bytes.
pub(super) struct RawSuperblock([u8; LENGTH]);

impl RawSuperblock {
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; LENGTH];
        file.read_exact_at(&mut bytes, OFFSET)?;
        Ok(Self(bytes))
    }

    pub(super) fn parse(&self) -> Result<Superblock, &'static str> {
        let raw = &self.0;
        if get16(raw, at::MAGIC) != MAGIC {
            return Err("its superblock has a wrong magic number");
        }
        let log_block_size = get32(raw, at::LOG_BLOCK_SIZE);
        if log_block_size > 6 {
            return Err("its block size is out of range");
        }
        let wide = get32(raw, at::FEATURE_INCOMPAT) & FEATURE_INCOMPAT_64BIT != 0;
        let join = |low, high| {
            let high = if wide { get32(raw, high) } else { 0 };
            u64::from(get32(raw, low)) | u64::from(high) << 32
        };
        let superblock = Superblock {
            block_size: 1024 << log_block_size,
            blocks: join(at::BLOCKS_LOW, at::BLOCKS_HIGH),
            free_blocks: join(at::FREE_BLOCKS_LOW, at::FREE_BLOCKS_HIGH),
            inodes: get32(raw, at::INODES),
            free_inodes: get32(raw, at::FREE_INODES),
            uuid: self.uuid(),
        };
        if superblock.blocks == 0 || superblock.free_blocks > superblock.blocks {
            return Err("its superblock contradicts itself");
        }
        Ok(superblock)
    }

    /// All of it, for fields that only a reader of other writers' file systems needs.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compatible, incompatible and read-only compatible feature bits.
    pub(super) fn features(&self) -> [u32; 3] {
        [
            at::FEATURE_COMPAT,
            at::FEATURE_INCOMPAT,
            at::FEATURE_RO_COMPAT,
        ]
        .map(|field| get32(&self.0, field))
    }

    pub(super) fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.0[at::UUID..at::UUID + 16]);
        uuid
    }

    pub(super) fn inodes_per_group(&self) -> u32 {
        get32(&self.0, at::INODES_PER_GROUP)
    }

    pub(super) fn blocks_per_group(&self) -> u32 {
        get32(&self.0, at::BLOCKS_PER_GROUP)
    }

    pub(super) fn first_block(&self) -> u32 {
        get32(&self.0, at::FIRST_BLOCK)
    }

    pub(super) fn first_inode(&self) -> u32 {
        get32(&self.0, at::FIRST_INODE)
    }

    pub(super) fn inode_size(&self) -> u16 {
        get16(&self.0, at::INODE_SIZE)
    }

    pub(super) fn descriptor_size(&self) -> u16 {
        get16(&self.0, at::DESCRIPTOR_SIZE)
    }

    pub(super) fn reserved_gdt_blocks(&self) -> u16 {
        get16(&self.0, at::RESERVED_GDT_BLOCKS)
    }

    /// Stores new counts and the checksum.
    pub(super) fn update(
        &mut self,
        file: &File,
        free_blocks: u64,
        free_inodes: u64,
    ) -> io::Result<()> {
        put32(&mut self.0, at::FREE_BLOCKS_LOW, low32(free_blocks));
        put32(&mut self.0, at::FREE_BLOCKS_HIGH, low32(free_blocks >> 32));
        put32(&mut self.0, at::FREE_INODES, low32(free_inodes));
        // Clean: everything that the counts count is in place.
        put16(&mut self.0, 58, 1);
        let checksum = crc32c(!0, &self.0[..at::CHECKSUM]);
        put32(&mut self.0, at::CHECKSUM, checksum);
        file.write_all_at(&self.0, OFFSET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        assert!(matches!(
            read_superblock(&path),
            Err(ReadSuperblockError::Read { .. })
        ));
        std::fs::write(&path, [0; 1500]).unwrap();
        let error = read_superblock(&path).unwrap_err().to_string();
        assert!(error.contains("too short"), "{error}");
        std::fs::write(&path, [0; 4096]).unwrap();
        let error = read_superblock(&path).unwrap_err().to_string();
        assert!(error.contains("magic"), "{error}");
    }
}
