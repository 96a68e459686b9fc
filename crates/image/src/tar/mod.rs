//! A tar archive as a source: parsed here block by block, merged into the tree, contents spooled.
//!
//! ```text
//!  header ── x, g ─→ pax records ──┐
//!    │  └─── L, K ─→ long names ───┴→ kept for the next entry
//!    ├─ entry ──→ tree.insert / hard_link, content → spool
//!    └─ zeros ──→ end marker: only zeros may follow, up to the end of the stream
//! ```
//!
//! Of the `tar` crate only the header's fields are used. Its iterator would read an extension header
//! of any size into memory, and takes an archive cut at an entry's end for a whole one.

mod entry;
mod number;
mod pax;
mod sparse;
mod stream;

use std::io::Read;

use self::entry::{Entry, EntryKind};
use self::pax::Pax;
use self::sparse::Segment;
use self::stream::{BLOCK, Stream};
use crate::error::{ImportError, Refusal, show};
use crate::ext4::Watch;
use crate::job::Skipped;
use crate::name::EntryPath;
use crate::node::{Children, Content, Device, Kind, Meta, Node};
use crate::spool::{Blocks, Spool};
use crate::tree::Tree;

/// An extension header is no longer than this, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// Reads a whole archive into the tree and the spool.
///
/// # Errors
/// For what is no tar, is cut short, is damaged, or has an entry that an image must not have.
pub(crate) fn read(
    reader: impl Read,
    tree: &mut Tree,
    spool: &mut Spool,
    watch: Watch<'_>,
    skipped: &mut Vec<Skipped>,
) -> Result<(), ImportError> {
    let limits = *tree.limits();
    // Content, and one header block with a few extensions an entry.
    let most = limits.max_entries.saturating_mul(4096);
    let stream = Stream::open(reader, limits.max_bytes.saturating_add(most))?;
    let mut reading = Reading {
        stream,
        tree,
        spool,
        watch,
        skipped,
        buffer: Vec::new(),
        chunk: vec![0; 64 << 10],
    };
    reading.entries()?;
    reading.stream.expect_only_zeros()
}

struct Reading<'a, 'r> {
    stream: Stream<'r>,
    tree: &'a mut Tree,
    spool: &'a mut Spool,
    watch: Watch<'a>,
    skipped: &'a mut Vec<Skipped>,
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

impl Reading<'_, '_> {
    fn entries(&mut self) -> Result<(), ImportError> {
        let mut global = Pax::default();
        let mut pax = Pax::default();
        while let Some(header) = self.next_header()? {
            let kind = header.entry_type().as_byte();
            match kind {
                b'x' => {
                    let records = self.extension(&header)?;
                    pax.merge(&records)
                        .map_err(|why| self.stream.corrupt(why))?;
                }
                b'g' => {
                    let records = self.extension(&header)?;
                    global
                        .merge(&records)
                        .map_err(|why| self.stream.corrupt(why))?;
                    pax = global.clone();
                }
                b'L' => pax.path = Some(until_nul(self.extension(&header)?)),
                b'K' => pax.link_path = Some(until_nul(self.extension(&header)?)),
                _ => {
                    let extensions = std::mem::replace(&mut pax, global.clone());
                    self.entry(&header, extensions)?;
                }
            }
            self.watch
                .progress
                .advance(self.stream.offset(), self.tree.entries());
        }
        Ok(())
    }

    /// The next header; `None` at the end marker.
    fn next_header(&mut self) -> Result<Option<::tar::Header>, ImportError> {
        self.watch.cancel.check()?;
        let first = self.stream.offset() == 0;
        let mut block = [0; BLOCK];
        self.stream.read_header_block(&mut block)?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = ::tar::Header::from_byte_slice(&block).clone();
        let sum: u64 = (0..BLOCK)
            .map(|at| match at {
                148..156 => u64::from(b' '),
                _ => u64::from(block[at]),
            })
            .sum();
        if number::parse(&header.as_old().cksum) != Some(sum.into()) {
            return Err(match first {
                true => ImportError::NotATar("its first block is no tar header"),
                false => self.stream.corrupt("a header's checksum is wrong"),
            });
        }
        Ok(Some(header))
    }

    /// The bytes of an extension header.
    fn extension(&mut self, header: &::tar::Header) -> Result<Vec<u8>, ImportError> {
        let size = entry::size(header).map_err(|why| self.stream.corrupt(why))?;
        if size > MAX_EXTENSION {
            return Err(self
                .stream
                .corrupt("an extension header is longer than 1 MiB"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.stream.read_exact(&mut bytes)?;
        self.stream.skip_padding(size)?;
        Ok(bytes)
    }

    fn entry(&mut self, header: &::tar::Header, pax: Pax) -> Result<(), ImportError> {
        let entry = Entry::new(header, pax).map_err(|why| self.stream.corrupt(why))?;
        let limits = *self.tree.limits();
        let path = EntryPath::parse(&entry.path, &limits)?;
        let refused = |why: Refusal| ImportError::refused(&entry.path, why);
        let meta = entry.meta;
        let kind = match entry.kind {
            EntryKind::File => {
                let segments = sparse::dense(entry.stored);
                let kind = self.file(&path, &segments, entry.stored, entry.stored)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::GnuSparse { real_size } => {
                let segments = sparse::gnu(header, &mut self.stream)?;
                let kind = self.file(&path, &segments, real_size, entry.stored)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::PaxSparse { real_size, map } => {
                let segments = map;
                let kind = self.file(&path, &segments, real_size, entry.stored)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::PaxSparseInline { real_size } => {
                let (segments, used) = sparse::inline(&mut self.stream, entry.stored)?;
                let kind = self.file(&path, &segments, real_size, entry.stored - used)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::HardLink(target) => {
                let target = EntryPath::parse(&target, &limits).map_err(|error| match error {
                    ImportError::Refused { why, .. } => {
                        let both = [&entry.path[..], b" (link to ", &target, b")"].concat();
                        ImportError::refused(&both, why)
                    }
                    other => other,
                })?;
                return self.tree.hard_link(&path, &target);
            }
            EntryKind::Ignored(why) => {
                if let Some(why) = why {
                    self.skipped.push(Skipped {
                        entry: show(&entry.path),
                        why: why.to_owned(),
                    });
                }
                self.stream.skip(entry.stored)?;
                return self.stream.skip_padding(entry.stored);
            }
            EntryKind::Directory => Kind::Directory(Children::new()),
            EntryKind::Symlink(target) => Kind::Symlink(target.into()),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::CharDevice(major, minor) => {
                Kind::CharDevice(Device::new(major, minor).map_err(refused)?)
            }
            EntryKind::BlockDevice(major, minor) => {
                Kind::BlockDevice(Device::new(major, minor).map_err(refused)?)
            }
        };
        self.insert(&path, meta, kind)
    }

    fn insert(&mut self, path: &EntryPath<'_>, meta: Meta, kind: Kind) -> Result<(), ImportError> {
        self.tree.insert(path, Node { meta, kind })?;
        Ok(())
    }

    /// Spools a file's content: the segments' bytes follow one another in the archive.
    fn file(
        &mut self,
        path: &EntryPath<'_>,
        segments: &[Segment],
        size: u64,
        stored: u64,
    ) -> Result<Kind, ImportError> {
        sparse::check(segments, size, stored).map_err(|why| self.stream.corrupt(why))?;
        self.tree.admit_content(path.raw(), size)?;
        let mut blocks = Blocks::new(self.spool, &mut self.buffer);
        let mut at = 0;
        for segment in segments {
            blocks.skip(segment.offset - at)?;
            let mut left = segment.length;
            while left > 0 {
                self.watch.cancel.check()?;
                let take = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(self.chunk.len());
                let chunk = &mut self.chunk[..take];
                self.stream.read_exact(chunk)?;
                blocks.write(chunk)?;
                left -= take as u64;
                self.watch
                    .progress
                    .advance(self.stream.offset(), self.tree.entries());
            }
            at = segment.offset + segment.length;
        }
        blocks.finish()?;
        self.stream.skip_padding(stored)?;
        Ok(Kind::File {
            size,
            content: Content::Spooled(self.spool.take_runs()),
        })
    }
}

/// Long names of the GNU kind end in NUL.
fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

#[cfg(test)]
mod tests;
