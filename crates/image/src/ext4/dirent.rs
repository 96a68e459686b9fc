//! Directory blocks, and the check of every name *at the writer*.
//!
//! Directories are linear. The kernel reads them with and without an index, and starts an index by
//! itself in directories that are small when it comes to them.

use super::checksum::crc32c;
use super::{low16, put16, put32};
use crate::error::{ImportError, Refusal};
use crate::spool::BLOCK;

/// The checksum takes the form of an unused entry at the end of each block.
pub(super) const TAIL: usize = 12;
const USABLE: usize = BLOCK - TAIL;
pub(super) const TAIL_TYPE: u8 = 0xde;

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) ino: u32,
    /// `EXT4_FT_*`.
    pub(super) file_type: u8,
}

/// `EXT4_FT_DIR`.
pub(super) const DIRECTORY: u8 = 2;

/// Refuses what no directory may hold, by the writer's own rules; nothing from outside is trusted to
/// have been checked before.
fn check(name: &[u8]) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(Refusal::EmptyName);
    }
    if name.len() > 255 {
        return Err(Refusal::NameTooLong);
    }
    if name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Refusal::ParentComponent);
    }
    match name
        .iter()
        .all(|byte| (0x20..0x7f).contains(byte) || *byte >= 0x80)
    {
        true => Ok(()),
        false => Err(Refusal::ControlCharacter),
    }
}

fn space(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

/// How many blocks a directory with these names takes.
pub(super) fn blocks_needed<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut blocks = 1;
    let mut used = space(b".") + space(b"..");
    for name in names {
        if used + space(name) > USABLE {
            blocks += 1;
            used = 0;
        }
        used += space(name);
    }
    blocks
}

/// Encodes a directory: `.`, `..` and the entries in the order given.
///
/// # Errors
/// A refusal for a name that must not be in a directory.
pub(super) fn encode<'a>(
    ino: u32,
    parent: u32,
    seed: u32,
    entries: impl Iterator<Item = Entry<'a>>,
) -> Result<Vec<u8>, ImportError> {
    let mut writer = Writer {
        blocks: vec![0; BLOCK],
        used: 0,
        last: 0,
        seed,
    };
    for (name, ino) in [(&b"."[..], ino), (b"..", parent)] {
        writer.push(&Entry {
            name,
            ino,
            file_type: DIRECTORY,
        });
    }
    for entry in entries {
        check(entry.name).map_err(|why| ImportError::refused(entry.name, why))?;
        writer.push(&entry);
    }
    writer.close_block();
    Ok(writer.blocks)
}

struct Writer {
    blocks: Vec<u8>,
    /// Bytes used in the current block.
    used: usize,
    /// Where the last entry of the current block starts.
    last: usize,
    seed: u32,
}

impl Writer {
    fn push(&mut self, entry: &Entry<'_>) {
        let space = space(entry.name);
        if self.used + space > USABLE {
            self.close_block();
            self.blocks.resize(self.blocks.len() + BLOCK, 0);
            self.used = 0;
        }
        let start = self.blocks.len() - BLOCK + self.used;
        let slot = &mut self.blocks[start..start + space];
        put32(slot, 0, entry.ino);
        put16(slot, 4, low16(space as u64));
        slot[6] = low16(entry.name.len() as u64).to_le_bytes()[0];
        slot[7] = entry.file_type;
        slot[8..8 + entry.name.len()].copy_from_slice(entry.name);
        self.last = self.used;
        self.used += space;
    }

    /// Stretches the last entry over the rest of the block and adds the checksum.
    fn close_block(&mut self) {
        let start = self.blocks.len() - BLOCK;
        let block = &mut self.blocks[start..];
        put16(block, self.last + 4, low16((USABLE - self.last) as u64));
        put16(block, USABLE + 4, low16(TAIL as u64));
        block[USABLE + 7] = TAIL_TYPE;
        let checksum = crc32c(self.seed, &block[..USABLE]);
        put32(block, USABLE + 8, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(name: &[u8]) -> Result<Vec<u8>, ImportError> {
        let entry = Entry {
            name,
            ino: 12,
            file_type: 1,
        };
        encode(2, 2, 0, [entry].into_iter())
    }

    // covers R57: the check at the writer does not lean on the one at the merge
    #[test]
    fn hostile_names_are_refused_here_too() {
        for name in [
            &b""[..],
            b".",
            b"..",
            b"a/b",
            b"a\nb",
            b"a\0",
            b"\x1b[2J",
            b"\x7f",
            &[b'a'; 256],
        ] {
            assert!(one(name).is_err(), "{name:?}");
        }
        for name in [
            &b"-rf"[..],
            b"\"",
            b"...",
            b"a b",
            b"caf\xc3\xa9",
            &[b'a'; 255],
        ] {
            assert!(one(name).is_ok(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn the_plan_counts_the_blocks_that_are_written(lengths in proptest::collection::vec(1usize..=255, 0..400)) {
            let names: Vec<Vec<u8>> = lengths.iter().map(|l| vec![b'n'; *l]).collect();
            let entries = names.iter().map(|name| Entry { name, ino: 12, file_type: 1 });
            let blocks = encode(2, 2, 0, entries).unwrap();
            let planned = blocks_needed(names.iter().map(Vec::as_slice));
            prop_assert_eq!(blocks.len() as u64, planned * BLOCK as u64);
        }
    }
}
