//! Writing a planned tree into an empty file system.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::dirent::Entry;
use super::extent::Extent;
use super::groups::{DESCRIPTOR, Groups};
use super::inode::{self, BlockMap, Inode};
use super::output::Output;
use super::plan::{LOST_AND_FOUND_INO, Plan, ROOT_INO};
use super::superblock::{RawSuperblock, Superblock};
use super::xattr::{Attributes, XattrError};
use super::{checksum, dirent, extent, geometry, low32};
use crate::error::{ImportError, Refusal, show};
use crate::job::{Cancel, Progress, Skipped};
use crate::node::{Content, Kind, Xattr};
use crate::spool::{BLOCK, BLOCK_U64, BlockSink};

/// Where the bytes of files come from.
pub(crate) trait Contents {
    /// Hands the blocks of a file that are not holes to the sink. `path` is the file's first path.
    fn copy(
        &mut self,
        path: &dyn Fn() -> Vec<u8>,
        content: &Content,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError>;
}

/// compat: has_journal, ext_attr, resize_inode, dir_index.
const COMPAT: u32 = 0x4 | 0x8 | 0x10 | 0x20;
/// incompat: filetype, extents, 64bit, flex_bg.
const INCOMPAT: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// ro_compat: sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// Writes the planned tree and returns the superblock as it is then.
///
/// # Errors
/// When a source cannot be read, the image cannot be written, a name is refused, or `cancel` is set.
pub(crate) fn populate(
    file: &File,
    path: &Path,
    plan: &Plan<'_>,
    contents: &mut dyn Contents,
    watch: Watch<'_>,
    skipped: &mut Vec<Skipped>,
) -> Result<Superblock, ImportError> {
    let io_error = |e| ImportError::write("populate", path, e);
    let mut superblock = RawSuperblock::read(file).map_err(io_error)?;
    let summary = check_layout(&superblock)?;
    let seed = checksum::file_system_seed(&superblock.uuid());
    let groups = Groups::load(file, &superblock, summary.blocks, seed).map_err(io_error)?;
    let mut populating = Populating {
        groups,
        blocks: Output::new(file, path),
        inodes: Output::new(file, path),
        seed,
        plan,
        watch,
        bytes: 0,
    };
    populating.forget_directories(file).map_err(io_error)?;
    for index in 0..plan.order.len() {
        populating.write_inode(index, contents, skipped)?;
    }
    populating.blocks.flush()?;
    populating.inodes.flush()?;
    let counts = populating.groups.store(file, plan.last_ino());
    let (free_blocks, free_inodes) = counts.map_err(io_error)?;
    superblock
        .update(file, free_blocks, free_inodes)
        .map_err(io_error)?;
    superblock.parse().map_err(ImportError::Layout)
}

/// The progress and the cancellation of the job.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

/// Refuses to write into anything but the layout that was asked for.
fn check_layout(raw: &RawSuperblock) -> Result<Superblock, ImportError> {
    let parsed = raw.parse().map_err(ImportError::Layout)?;
    let wrong = match () {
        () if parsed.block_size != BLOCK_U64 || raw.first_block() != 0 => "block size",
        () if raw.features() != [COMPAT, INCOMPAT, RO_COMPAT] => "features",
        () if u64::from(raw.blocks_per_group()) != geometry::BLOCKS_PER_GROUP => "group size",
        () if usize::from(raw.inode_size()) != inode::SIZE => "inode size",
        () if raw.first_inode() != LOST_AND_FOUND_INO => "first inode",
        () if usize::from(raw.descriptor_size()) != DESCRIPTOR => "descriptor size",
        () if !raw.inodes_per_group().is_multiple_of(16) => "inodes in a group",
        () => return Ok(parsed),
    };
    Err(ImportError::Layout(wrong))
}

struct Populating<'a> {
    groups: Groups,
    blocks: Output<'a>,
    inodes: Output<'a>,
    seed: u32,
    plan: &'a Plan<'a>,
    watch: Watch<'a>,
    bytes: u64,
}

impl Populating<'_> {
    /// Takes the blocks of the root and of lost+found back: both are written anew.
    fn forget_directories(&mut self, file: &File) -> io::Result<()> {
        for ino in [ROOT_INO, LOST_AND_FOUND_INO] {
            let mut raw = [0; inode::SIZE];
            let offset = self.groups.inode_offset(ino).unwrap_or(0);
            file.read_exact_at(&mut raw, offset)?;
            let extents = extent::decode_shallow(&raw[40..100]);
            for extent in extents.ok_or(io::ErrorKind::InvalidData)? {
                for block in 0..u64::from(extent.length) {
                    // Holes are left unwritten later, so they must read as zeros now.
                    file.write_all_at(&[0; BLOCK], (extent.physical + block) * BLOCK_U64)?;
                }
                self.groups.free(extent.physical, extent.length.into());
            }
        }
        Ok(())
    }

    fn write_inode(
        &mut self,
        index: usize,
        contents: &mut dyn Contents,
        skipped: &mut Vec<Skipped>,
    ) -> Result<(), ImportError> {
        self.watch.cancel.check()?;
        let planned = self.plan.order[index];
        let ino = planned.ino;
        let seed = checksum::inode_seed(self.seed, ino, 0);
        let node = self.plan.tree().node(planned.node);
        let mut extents = Vec::new();
        let (size, inline) = match &node.kind {
            Kind::Directory(_) => (self.write_directory(index, seed, &mut extents)?, None),
            Kind::File { size, content } => {
                let path = || self.plan.path(index);
                let mut sink = FileSink {
                    groups: &mut self.groups,
                    blocks: &mut self.blocks,
                    extents: &mut extents,
                    watch: self.watch,
                    before: (self.bytes, index as u64),
                };
                contents.copy(&path, content, &mut sink)?;
                self.bytes += size;
                (*size, None)
            }
            Kind::Symlink(target) => {
                let length = target.len() as u64;
                let inline = (target.len() < inode::FAST_SYMLINK).then(|| {
                    let mut map = [0; 60];
                    map[..target.len()].copy_from_slice(target);
                    map
                });
                if inline.is_none() {
                    let mut block = target.to_vec();
                    block.resize(BLOCK, 0);
                    self.write_data(index, &block, &mut extents)?;
                }
                (length, inline)
            }
            Kind::CharDevice(device) | Kind::BlockDevice(device) => {
                (0, Some(inode::device_map(*device)))
            }
            Kind::Fifo => (0, Some([0; 60])),
        };
        let mut blocks: u64 = extents.iter().map(|e| u64::from(e.length)).sum();
        let map = match inline {
            Some(map) => BlockMap::Inline(map),
            None => {
                let (map, tree) = extent::encode(&extents, seed, |block| {
                    let (number, _) = self.groups.allocate(1)?;
                    self.blocks.write_block(number, block)?;
                    Ok(number)
                })?;
                blocks += tree;
                BlockMap::Extents(map)
            }
        };
        let skip = |xattr: &Xattr, why: XattrError| {
            skipped.push(Skipped {
                entry: show(&self.plan.path(index)),
                why: format!("extended attribute \"{}\": {why}", show(&xattr.name)),
            });
        };
        let attributes = Attributes::collect(&node.meta.xattrs, skip);
        let mut attribute_block = 0;
        if attributes.needs_block() {
            (attribute_block, _) = self.groups.allocate(1)?;
            let block = attributes.encode_block(attribute_block, self.seed);
            self.blocks.write_block(attribute_block, &block)?;
            blocks += 1;
        }
        let inode = Inode {
            meta: &node.meta,
            file_type: inode::file_type(&node.kind),
            links: self.plan.links(planned.node),
            size,
            blocks,
            map,
            attributes: &attributes,
            attribute_block,
        };
        let offset = self.groups.inode_offset(ino);
        let offset = offset.ok_or(ImportError::TooLarge("it has too many files"))?;
        self.inodes.write(offset, &inode.encode(seed))?;
        self.watch.progress.advance(self.bytes, index as u64 + 1);
        Ok(())
    }

    /// Writes a directory's blocks and returns its size in bytes.
    fn write_directory(
        &mut self,
        index: usize,
        seed: u32,
        extents: &mut Vec<Extent>,
    ) -> Result<u64, ImportError> {
        let plan = self.plan;
        let planned = plan.order[index];
        let parent = plan.order[planned.parent].ino;
        let entries = plan
            .tree()
            .children(planned.node)
            .map(|(name, child)| Entry {
                name,
                ino: plan.ino(child),
                file_type: inode::directory_file_type(&plan.tree().node(child).kind),
            });
        let bytes = dirent::encode(planned.ino, parent, seed, entries)?;
        self.write_data(index, &bytes, extents)?;
        self.groups.count_directory(planned.ino);
        Ok(bytes.len() as u64)
    }

    fn write_data(
        &mut self,
        index: usize,
        bytes: &[u8],
        extents: &mut Vec<Extent>,
    ) -> Result<(), ImportError> {
        FileSink {
            groups: &mut self.groups,
            blocks: &mut self.blocks,
            extents,
            watch: self.watch,
            before: (self.bytes, index as u64),
        }
        .put(0, bytes)
    }
}

/// Puts a file's blocks on disk, one after the other.
struct FileSink<'a, 'f> {
    groups: &'a mut Groups,
    blocks: &'a mut Output<'f>,
    extents: &'a mut Vec<Extent>,
    watch: Watch<'a>,
    /// Bytes and entries done before this file.
    before: (u64, u64),
}

impl BlockSink for FileSink<'_, '_> {
    fn put(&mut self, block: u64, mut bytes: &[u8]) -> Result<(), ImportError> {
        self.watch.cancel.check()?;
        let (bytes_before, entries) = self.before;
        let progress = self.watch.progress;
        progress.advance(bytes_before + block * BLOCK_U64, entries);
        let mut block = block;
        while !bytes.is_empty() {
            let (physical, count) = self.groups.allocate((bytes.len() / BLOCK) as u64)?;
            let logical = u32::try_from(block)
                .map_err(|_| ImportError::refused(b"", Refusal::FileTooLarge))?;
            extent::append(self.extents, logical, low32(count), physical);
            let (now, rest) = bytes.split_at(usize::try_from(count).unwrap_or(0) * BLOCK);
            self.blocks.write_block(physical, now)?;
            block += count;
            bytes = rest;
        }
        Ok(())
    }
}
