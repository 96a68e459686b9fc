//! Inode numbers, link counts and the space that a tree takes. Pure.

use sha2::{Digest as _, Sha256};

use super::geometry::{Needs, RESERVED_INODES};
use super::{dirent, extent, inode, xattr};
use crate::error::{ImportError, Refusal};
use crate::node::{Kind, NodeId};
use crate::spool::BLOCK_U64;
use crate::tree::{ROOT, Tree};

/// The root directory's inode.
pub(super) const ROOT_INO: u32 = 2;
/// The inode of lost+found, the first that is not reserved.
pub(super) const LOST_AND_FOUND_INO: u32 = 11;
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// `EXT4_LINK_MAX`.
const MAX_LINKS: u32 = 65_000;
/// The kernel's bound for files with 4 KiB blocks.
const MAX_FILE: u64 = (1 << 32) * BLOCK_U64 - BLOCK_U64;

/// One inode to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned<'t> {
    pub(super) node: NodeId,
    pub(super) ino: u32,
    /// Index of the directory that names it first.
    pub(super) parent: usize,
    /// Its name there; empty for the root.
    pub(super) name: &'t [u8],
}

/// What is written, in order: each directory, then its files, then its subdirectories' likewise.
pub(crate) struct Plan<'t> {
    tree: &'t Tree,
    pub(super) order: Vec<Planned<'t>>,
    /// By node: its inode (0: unreachable) and its number of names.
    inodes: Vec<(u32, u32)>,
    needs: Needs,
    names: u64,
    content: u64,
}

impl<'t> Plan<'t> {
    /// Numbers the tree's inodes.
    ///
    /// # Errors
    /// When an inode breaks a bound of ext4.
    pub(crate) fn new(tree: &'t Tree) -> Result<Self, ImportError> {
        let mut plan = Self {
            tree,
            order: Vec::new(),
            inodes: vec![(0, 0); tree.node_count()],
            needs: Needs {
                blocks: 0,
                inodes: 0,
            },
            names: 0,
            content: 0,
        };
        plan.number(ROOT, 0, b"");
        let mut directories = vec![0];
        while let Some(parent) = directories.pop() {
            let first = plan.order.len();
            for (name, child) in tree.children(plan.order[parent].node) {
                plan.names += 1;
                plan.inodes[Tree::index(child)].1 += 1;
                if plan.inodes[Tree::index(child)].0 == 0 {
                    plan.number(child, parent, name);
                }
            }
            let is_directory = |index: &usize| {
                let node = plan.order[*index].node;
                matches!(tree.node(node).kind, Kind::Directory(_))
            };
            directories.extend((first..plan.order.len()).rev().filter(is_directory));
        }
        for index in 0..plan.order.len() {
            plan.weigh(index)?;
        }
        Ok(plan)
    }

    fn number(&mut self, node: NodeId, parent: usize, name: &'t [u8]) {
        let ino = match (node, parent, name) {
            (ROOT, ..) => ROOT_INO,
            (_, 0, LOST_AND_FOUND) => LOST_AND_FOUND_INO,
            _ => {
                self.needs.inodes += 1;
                u32::try_from(self.needs.inodes + RESERVED_INODES).unwrap_or(u32::MAX)
            }
        };
        self.inodes[Tree::index(node)].0 = ino;
        self.order.push(Planned {
            node,
            ino,
            parent,
            name,
        });
    }

    /// Adds up what one inode takes.
    fn weigh(&mut self, index: usize) -> Result<(), ImportError> {
        let planned = self.order[index];
        let node = self.tree.node(planned.node);
        let blocks = match &node.kind {
            Kind::File { size, .. } if *size > MAX_FILE => {
                return Err(ImportError::refused(
                    &self.path(index),
                    Refusal::FileTooLarge,
                ));
            }
            Kind::File { size, .. } => {
                self.content += size;
                file_blocks(*size)
            }
            Kind::Directory(children) => dirent::blocks_needed(children.keys().map(|name| &**name)),
            Kind::Symlink(target) => u64::from(target.len() >= inode::FAST_SYMLINK),
            Kind::Fifo | Kind::CharDevice(_) | Kind::BlockDevice(_) => 0,
        };
        let is_directory = matches!(node.kind, Kind::Directory(_));
        let names = self.inodes[Tree::index(planned.node)].1;
        let limit = self.tree.limits().max_links;
        if !is_directory && limit < MAX_LINKS && names > limit {
            let what = "names of one file";
            return Err(ImportError::limit(&self.path(index), limit.into(), what));
        }
        if !is_directory && names > MAX_LINKS {
            return Err(ImportError::refused(
                &self.path(index),
                Refusal::TooManyLinks,
            ));
        }
        let attributes = xattr::Attributes::collect(&node.meta.xattrs, |_, _| {});
        self.needs.blocks += blocks + u64::from(attributes.needs_block());
        Ok(())
    }

    pub(super) fn tree(&self) -> &'t Tree {
        self.tree
    }

    pub(super) fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Names in the image: hard links count each, the root and what was not in the source do not.
    pub(crate) fn names(&self) -> u64 {
        self.names
    }

    /// Apparent size of all files, hard links once, in bytes.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    pub(super) fn ino(&self, node: NodeId) -> u32 {
        self.inodes[Tree::index(node)].0
    }

    /// The highest inode in use.
    pub(super) fn last_ino(&self) -> u32 {
        u32::try_from(self.needs.inodes + RESERVED_INODES).unwrap_or(u32::MAX)
    }

    /// Link count: names, or for a directory its subdirectories and itself twice; 1 means many.
    pub(super) fn links(&self, node: NodeId) -> u16 {
        let count = match &self.tree.node(node).kind {
            Kind::Directory(children) => {
                let is_directory =
                    |id: &&NodeId| matches!(self.tree.node(**id).kind, Kind::Directory(_));
                2 + children.values().filter(is_directory).count()
            }
            _ => self.inodes[Tree::index(node)].1 as usize,
        };
        match u16::try_from(count) {
            Ok(count) if u32::from(count) <= MAX_LINKS => count,
            _ => 1,
        }
    }

    /// The path of an inode by its first name, without a leading slash; `.` is the root.
    pub(super) fn path(&self, mut index: usize) -> Vec<u8> {
        let mut names = Vec::new();
        while index != 0 {
            names.push(self.order[index].name);
            index = self.order[index].parent;
        }
        names.reverse();
        match names.is_empty() {
            true => b".".to_vec(),
            false => names.join(&b'/'),
        }
    }

    /// An identity for the file system: the same for the same tree, different for others.
    ///
    /// File contents are represented by their sizes only: they have not been read yet.
    pub(super) fn uuid(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        for (index, planned) in self.order.iter().enumerate() {
            let node = self.tree.node(planned.node);
            hash.update(self.path(index));
            hash.update([0]);
            let meta = &node.meta;
            for number in [
                u64::from(meta.mode | inode::file_type(&node.kind)),
                u64::from(meta.uid) << 32 | u64::from(meta.gid),
                meta.mtime.secs.cast_unsigned(),
                match &node.kind {
                    Kind::File { size, .. } => *size,
                    _ => 0,
                },
            ] {
                hash.update(number.to_le_bytes());
            }
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hash.finalize()[..16]);
        // RFC 9562: version 8 (custom), variant 10.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}

/// Data blocks by apparent size, and the extent tree that these many can need.
///
/// Holes make extents short but leave their blocks unused, so a tree never takes more than the blocks
/// counted for its holes; what is added is for a file without any that is cut by group metadata.
fn file_blocks(size: u64) -> u64 {
    let blocks = size.div_ceil(BLOCK_U64);
    let pieces = blocks / 8192 + 2;
    let leaves = match pieces <= extent::IN_INODE as u64 {
        true => 0,
        false => pieces.div_ceil(extent::IN_BLOCK as u64) + 1,
    };
    blocks + leaves
}
