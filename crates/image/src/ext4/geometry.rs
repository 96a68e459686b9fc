//! How large the file system must be: all the arithmetic, checked, in 4096-byte blocks.

use crate::error::ImportError;
use crate::job::Sizing;
use crate::spool::BLOCK_U64;

/// Blocks in a full group: as many as one bitmap block has bits.
pub(super) const BLOCKS_PER_GROUP: u64 = 32768;
/// Inodes in one block of an inode table.
const INODES_PER_BLOCK: u64 = 16;
/// The density that mke2fs uses by itself (one inode every 16 KiB). A small image gets it too, since
/// groups added when the disk is grown take it over.
const MIN_INODES_PER_GROUP: u64 = 8192;
/// One bitmap block's worth.
const MAX_INODES_PER_GROUP: u64 = 32768;
/// Inodes that ext4 keeps for itself, lost+found included.
pub(super) const RESERVED_INODES: u64 = 11;
/// Room is kept in the group descriptor table to grow a mounted file system to 1 TiB.
const GROWABLE_BLOCKS: u64 = (1 << 40) / BLOCK_U64;

/// What the content takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// Blocks: data by apparent size, directories, extent trees, attributes.
    pub(super) blocks: u64,
    /// Inodes, the reserved ones not counted.
    pub(super) inodes: u64,
}

/// What `mke2fs` is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Size of the file system, in blocks.
    pub(super) blocks: u64,
    /// Number of inodes.
    pub(super) inodes: u64,
    /// Journal size, in MiB.
    pub(super) journal_mib: u64,
    /// The size up to which a mounted file system can be grown cheaply, in blocks.
    pub(super) growable: u64,
    /// Blocks that must be free after formatting.
    pub(super) must_be_free: u64,
}

impl Geometry {
    /// The smallest file system that has room for the content and the asked-for slack, and `extra`
    /// blocks of metadata more than are known here.
    pub(super) fn for_content(
        needs: &Needs,
        sizing: &Sizing,
        extra: u64,
    ) -> Result<Self, ImportError> {
        let too_large = ImportError::TooLarge("the file system would exceed 16 TiB");
        Self::compute(needs, sizing, extra).ok_or(too_large)
    }

    fn compute(needs: &Needs, sizing: &Sizing, extra: u64) -> Option<Self> {
        // A gap at the end of a group can split a file once more than planned.
        let splits = needs.blocks / BLOCKS_PER_GROUP + 16;
        let must_be_free = needs
            .blocks
            .checked_add(splits)?
            .checked_add(sizing.free_bytes.div_ceil(BLOCK_U64))?;
        let inodes = needs
            .inodes
            .checked_add(RESERVED_INODES)?
            .checked_add(sizing.free_inodes)?;
        let journal_mib = if must_be_free >= (4 << 30) / BLOCK_U64 {
            64
        } else {
            16
        };
        let journal = (journal_mib << 20) / BLOCK_U64;
        let mut blocks = sizing.min_bytes.div_ceil(BLOCK_U64).max(1);
        // Metadata grows with the size, which grows with the metadata: a few rounds settle it.
        loop {
            if blocks > u64::from(u32::MAX) - BLOCKS_PER_GROUP {
                return None;
            }
            let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
            let inodes_per_group = inodes
                .div_ceil(groups)
                .next_multiple_of(INODES_PER_BLOCK)
                .max(MIN_INODES_PER_GROUP);
            if inodes_per_group > MAX_INODES_PER_GROUP {
                blocks = groups * BLOCKS_PER_GROUP + 1;
                continue;
            }
            let growable = GROWABLE_BLOCKS.max(blocks + 1);
            let descriptors = growable.div_ceil(BLOCKS_PER_GROUP).div_ceil(64) + 1;
            let each_group = 2 + inodes_per_group / INODES_PER_BLOCK;
            // mke2fs leaves out a last group that has hardly room for its own metadata.
            let last = each_group + 1 + descriptors + 64;
            let end = blocks % BLOCKS_PER_GROUP;
            if end != 0 && end < last {
                blocks += last - end;
                continue;
            }
            let copies = (0..groups).filter(|g| has_superblock(*g)).count() as u64;
            let overhead = groups * each_group + copies * (1 + descriptors) + 64 + extra;
            // It also wants a journal to take no more than half of what is free.
            let wanted = overhead
                .checked_add(journal)?
                .checked_add(must_be_free.max(journal))?;
            if wanted <= blocks {
                return Some(Self {
                    blocks,
                    inodes: inodes_per_group * groups,
                    journal_mib,
                    growable,
                    must_be_free,
                });
            }
            blocks = wanted;
        }
    }
}

/// Whether a group starts with a copy of the superblock (`sparse_super`): 0, 1 and powers of 3, 5, 7.
pub(super) fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn superblock_copies() {
        let groups: Vec<_> = (0..=82).filter(|g| has_superblock(*g)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81]);
    }

    // covers R61
    #[test]
    fn units_are_blocks_and_overflow_is_an_error() {
        let needs = Needs {
            blocks: 1,
            inodes: 1,
        };
        let sizing = Sizing {
            min_bytes: 1 << 30,
            ..Sizing::default()
        };
        assert_eq!(
            Geometry::for_content(&needs, &sizing, 0).unwrap().blocks,
            262_144
        );
        for sizing in [
            Sizing {
                min_bytes: u64::MAX,
                ..Sizing::default()
            },
            Sizing {
                free_bytes: u64::MAX,
                ..Sizing::default()
            },
            Sizing {
                free_inodes: u64::MAX,
                ..Sizing::default()
            },
        ] {
            assert!(Geometry::for_content(&needs, &sizing, 0).is_err());
        }
        let needs = Needs {
            blocks: u64::MAX,
            inodes: 1,
        };
        assert!(Geometry::for_content(&needs, &Sizing::default(), 0).is_err());
    }

    proptest! {
        // covers R61
        #[test]
        fn there_is_room_for_content_and_slack(
            blocks in 0u64..50_000_000, inodes in 0u64..5_000_000, free in 0u64..1 << 36,
        ) {
            let needs = Needs { blocks, inodes };
            let sizing = Sizing { free_bytes: free, ..Sizing::default() };
            let geometry = Geometry::for_content(&needs, &sizing, 0).unwrap();
            prop_assert!(geometry.must_be_free * BLOCK_U64 >= blocks * BLOCK_U64 + free);
            prop_assert!(geometry.blocks > geometry.must_be_free);
            prop_assert!(geometry.inodes >= inodes + sizing.free_inodes);
            let groups = geometry.blocks.div_ceil(BLOCKS_PER_GROUP);
            prop_assert!(geometry.inodes / groups <= MAX_INODES_PER_GROUP);
            prop_assert!(geometry.inodes / groups >= MIN_INODES_PER_GROUP);
        }
    }
}
