//! What a tree consists of: one node for each inode to be.

use std::collections::BTreeMap;

use crate::error::Refusal;

/// Index of a node in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

/// Names of a directory, sorted by bytes: the order in which everything is written.
pub(crate) type Children = BTreeMap<Box<[u8]>, NodeId>;

/// A moment, as inodes keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    /// Seconds since 1970.
    pub(crate) secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub(crate) nanos: u32,
}

/// An extended attribute: full name (`security.capability`) and value, as the kernel gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// What every inode has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Meta {
    /// Permission bits with setuid, setgid and sticky; no type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<Xattr>,
}

/// A stretch of whole blocks in the spool file. Blocks of a file that no run covers are holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// First block within the file, in 4096-byte blocks.
    pub(crate) block: u64,
    /// Number of blocks.
    pub(crate) count: u64,
    /// Where they are in the spool, in bytes.
    pub(crate) spool: u64,
}

/// What a source file looked like when it was found, to notice a change before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// In the spool file.
    Spooled(Box<[Run]>),
    /// In the source directory, at the node's first path.
    InSource(Stamp),
    /// In the image that has the lower layers, in this inode.
    InBase(u32),
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Device {
    /// Linux has 12 bits of major and 20 of minor number.
    pub(crate) fn new(major: u32, minor: u32) -> Result<Self, Refusal> {
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(Refusal::BadDevice);
        }
        Ok(Self { major, minor })
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory(Children),
    File { size: u64, content: Content },
    Symlink(Box<[u8]>),
    Fifo,
    CharDevice(Device),
    BlockDevice(Device),
}

/// One inode to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
}
