//! ext4 without mounting: `mke2fs` lays out an empty file system, this module writes a tree into it.
//!
//! ```text
//!  plan      tree → inode numbers, link counts, blocks needed      (pure)
//!  format    plan → size → mke2fs → empty image                    (the only helper program)
//!  populate  image + plan + contents → inodes, names, data, counts
//! ```
//!
//! What `mke2fs` decides (groups, journal, resize inode, backups) is read back from the image, never
//! assumed. What is written here is new blocks and inodes, plus the bitmaps, group descriptors and
//! superblock that count them, with their checksums. Reference: the kernel's
//! `Documentation/filesystems/ext4`. Inode and block numbers follow the sorted tree and nothing takes
//! the time of day, so the same tree always gives the same bytes.
//!
//! [`read`] is the way back, for images of other writers as well.
//!
//! It must never take a name on trust: [`dirent`] checks each again by its own rules.

mod acl;
mod checksum;
mod dirent;
mod extent;
mod format;
mod geometry;
mod groups;
mod inode;
mod output;
mod plan;
mod populate;
pub(crate) mod read;
mod superblock;
mod xattr;

pub(crate) use format::{find_program, format};
pub(crate) use plan::Plan;
pub(crate) use populate::{Contents, Watch, populate};
pub(crate) use superblock::inspect;
pub use superblock::{ReadSuperblockError, Superblock, read_superblock};

/// Reads a little-endian 16-bit field.
fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a little-endian 32-bit field.
fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) | u32::from(get16(bytes, at + 2)) << 16
}

/// Writes a little-endian 16-bit field.
fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes a little-endian 32-bit field.
fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Bits 0 to 15 of a value that is stored in pieces.
#[allow(clippy::cast_possible_truncation)]
fn low16(value: u64) -> u16 {
    value as u16
}

/// Bits 0 to 31 of a value that is stored in pieces.
#[allow(clippy::cast_possible_truncation)]
fn low32(value: u64) -> u32 {
    value as u32
}
