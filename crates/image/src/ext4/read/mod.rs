//! ext4 read without mounting, whoever wrote it: our importer, or a guest's kernel that may be hostile.
//!
//! ```text
//!  layout     superblock → sizes, features, where each group's inodes are
//!  inode      number → type, owner, times, size, map
//!  extents    map → stretches of blocks, one by one
//!  directory  stretches → names, checked
//!  xattrs     inode and block → attributes as the kernel shows them
//! ```
//!
//! Own code, because the public crate for this, ext4-view 1.0, gives neither extended attributes nor
//! inode numbers (hard links), device numbers, or where the holes of a file are; and an export without
//! those is not the tree that was there. Reference: the kernel's `Documentation/filesystems/ext4`.
//!
//! Everything on the disk is a claim. A number from it is compared with its bound before it is used,
//! trees of extents have the depth that their root says, and each error names the inode. Nothing is
//! repaired, guessed, or allocated by a size that only the disk vouches for. Checksums are verified
//! where the file system has them.

mod directory;
mod extents;
mod inode;
mod layout;
mod xattrs;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) use self::directory::Name;
pub(crate) use self::extents::Stretch;
pub(crate) use self::inode::{Inode, InodeKind};
use self::layout::Layout;
use super::superblock::RawSuperblock;
use crate::job::Cancel;

/// The inode of the root directory.
pub(crate) const ROOT: u32 = super::plan::ROOT_INO;
/// The inode that `mke2fs` gives to lost+found.
pub(crate) const LOST_AND_FOUND: u32 = super::plan::LOST_AND_FOUND_INO;

/// Why something cannot be read; whoever walks the tree knows its path.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io(io::Error),
    /// No ext4, or not one that can be right.
    NotExt4(&'static str),
    /// A journal, or orphans, that a mount would see to first.
    Unclean,
    /// A kind of ext4 that is not read here.
    Unsupported(&'static str),
    /// An inode that contradicts itself or others.
    Damaged {
        ino: u32,
        why: &'static str,
    },
    /// An inode of a kind that is not read here.
    UnsupportedInode {
        ino: u32,
        what: &'static str,
    },
    /// A bound was crossed.
    Limit {
        limit: u64,
        what: &'static str,
    },
    Cancelled,
}

impl ReadError {
    fn damaged<T>(ino: u32, why: &'static str) -> Result<T, Self> {
        Err(Self::Damaged { ino, why })
    }
}

/// An open file system.
pub(crate) struct Reader {
    file: File,
    layout: Layout,
    cancel: Cancel,
    /// The group whose inodes were read last, and the block where they start.
    last_group: Cell<(u32, u64)>,
    /// Blocks of directories that may still be read. Each block of an honest image is read once at
    /// most, so that one block in many directories does not make a small image endless.
    directory_blocks: Cell<u64>,
}

impl Reader {
    /// Reads the superblock. `cancel` is asked at each access to the image.
    pub(crate) fn open(file: File, cancel: &Cancel) -> Result<Self, ReadError> {
        let raw = RawSuperblock::read(&file).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::NotExt4("it is too short"),
            _ => ReadError::Io(error),
        })?;
        let layout = Layout::parse(&raw)?;
        let length = file.metadata().map_err(ReadError::Io)?.len();
        if layout.blocks > length / layout.block_bytes() {
            return Err(ReadError::NotExt4(
                "it is shorter than its file system; it was cut",
            ));
        }
        Ok(Self {
            directory_blocks: Cell::new(layout.blocks),
            file,
            layout,
            cancel: cancel.clone(),
            last_group: Cell::new((u32::MAX, 0)),
        })
    }

    /// Length of a block, in bytes: 1024, 2048 or 4096.
    pub(crate) fn block_size(&self) -> u64 {
        self.layout.block_bytes()
    }

    /// Bytes of the whole file system.
    fn size(&self) -> u64 {
        self.layout.blocks * self.layout.block_bytes()
    }

    /// Fails once a stop was asked for.
    pub(crate) fn check_cancelled(&self) -> Result<(), ReadError> {
        match self.cancel.is_cancelled() {
            true => Err(ReadError::Cancelled),
            false => Ok(()),
        }
    }

    /// Reads bytes of the image at an offset.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        self.check_cancelled()?;
        self.file
            .read_exact_at(bytes, offset)
            .map_err(ReadError::Io)
    }

    /// Reads one block, whose number is `ino`'s word.
    fn block(&self, ino: u32, number: u64) -> Result<Vec<u8>, ReadError> {
        if !self.layout.holds(number, 1) {
            return ReadError::damaged(ino, "it has a block outside of the file system");
        }
        let mut block = vec![0; self.layout.block_size];
        self.read(number * self.block_size(), &mut block)?;
        Ok(block)
    }

    /// Bytes of a file that are in one written stretch of blocks, from its byte `at` on.
    pub(crate) fn read_stretch(
        &self,
        stretch: &Stretch,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<(), ReadError> {
        self.read(stretch.physical * self.block_size() + at, bytes)
    }
}
