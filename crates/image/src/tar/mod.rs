//! A tar archive as a source: parsed here block by block, merged into the tree, contents spooled.
//!
//! ```text
//!  headers: header ── x, g ─→ pax records ──┐
//!             │  └─── L, K ─→ long names ───┴→ kept for the next entry
//!             ├─ entry ──→ tree.insert / hard_link, content → spool
//!             │            of a layer also tree.hide / tree.hide_children
//!             └─ zeros ──→ end marker: only zeros may follow, up to the end of the stream
//!  index:   the same headers, kept as names and offsets
//! ```
//!
//! Of the `tar` crate only the header's fields are used. Its iterator would read an extension header
//! of any size into memory, and takes an archive cut at an entry's end for a whole one.

mod entry;
mod headers;
mod index;
mod number;
mod pax;
mod sparse;
mod stream;
mod whiteout;

use std::io::Read;

use self::entry::{Entry, EntryKind};
use self::headers::Headers;
pub(crate) use self::index::{Member, index};
use self::sparse::Segment;
use self::stream::Stream;
use self::whiteout::Meaning;
use crate::error::{ImportError, Refusal, show};
use crate::ext4::Watch;
use crate::job::{Limits, Skipped};
use crate::name::EntryPath;
use crate::node::{Children, Content, Device, Kind, Meta, Node};
use crate::oci::Hasher;
use crate::spool::{Blocks, Spool};
use crate::tree::Tree;

/// So many entries that were left out are named, and the others counted.
const MAX_SKIPPED: usize = 1000;

/// Where an archive goes.
pub(crate) struct Destination<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) spool: &'a mut Spool,
    pub(crate) watch: Watch<'a>,
    pub(crate) skipped: &'a mut Vec<Skipped>,
    /// Bytes that progress counts before this archive.
    pub(crate) before: u64,
}

/// Reads a whole archive into the tree and the spool.
///
/// # Errors
/// For what is no tar, is cut short, is damaged, or has an entry that an image must not have.
pub(crate) fn read(reader: impl Read, to: Destination<'_>) -> Result<(), ImportError> {
    let stream = Stream::open(reader, most_bytes(to.tree.limits()), None)?;
    let mut reading = Reading::new(Headers::new(stream, true), to, false);
    reading.entries()?;
    reading.headers.stream.expect_only_zeros()
}

/// Reads one layer of an image into the tree, on top of those before it.
///
/// Gives back the hasher with what the layer decompresses to, and how many bytes that is. An archive
/// without an end marker is whole here: what the hasher says is checked by the caller.
///
/// # Errors
/// As [`read`], and for whiteouts that hide nothing that can be.
pub(crate) fn read_layer(
    reader: impl Read,
    hasher: Hasher,
    to: Destination<'_>,
) -> Result<(Option<Hasher>, u64), ImportError> {
    let stream = Stream::open(reader, most_bytes(to.tree.limits()), Some(hasher))?;
    to.tree.begin_layer()?;
    let mut reading = Reading::new(Headers::new(stream, false), to, true);
    reading.entries()?;
    reading.headers.stream.expect_only_zeros()?;
    reading.to.tree.end_layer()?;
    let stream = reading.headers.stream;
    let bytes = stream.offset();
    Ok((stream.into_hasher(), bytes))
}

/// The last of the bounds on a decompressed archive: content, and a page of headers an entry.
fn most_bytes(limits: &Limits) -> u64 {
    let headers = limits.max_entries.saturating_mul(8 << 10);
    limits
        .max_bytes
        .saturating_add(headers)
        .saturating_add(64 << 20)
}

struct Reading<'a, 'r> {
    headers: Headers<'r>,
    to: Destination<'a>,
    is_layer: bool,
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

impl<'a, 'r> Reading<'a, 'r> {
    fn new(headers: Headers<'r>, to: Destination<'a>, is_layer: bool) -> Self {
        Self {
            headers,
            to,
            is_layer,
            buffer: Vec::new(),
            chunk: vec![0; 64 << 10],
        }
    }

    fn entries(&mut self) -> Result<(), ImportError> {
        while let Some((header, entry)) = self.headers.next(self.to.watch.cancel)? {
            self.entry(&header, entry)?;
            self.advance();
        }
        Ok(())
    }

    fn advance(&self) {
        let bytes = self.to.before + self.headers.stream.offset();
        let entries = self.to.tree.entries();
        self.to.watch.progress.advance(bytes, entries);
    }

    /// Leaves an entry out, with what it has stored; that counts as content all the same.
    fn leave_out(&mut self, entry: &Entry, why: Option<&str>) -> Result<(), ImportError> {
        self.to.tree.admit_left_out(&entry.path, entry.stored)?;
        if let Some(why) = why {
            note(self.to.skipped, &entry.path, why);
        }
        self.headers.stream.skip(entry.stored)?;
        self.headers.stream.skip_padding(entry.stored)
    }

    /// What a layer's entry hides, where it is no entry but a whiteout; true then.
    fn whiteout(&mut self, path: &EntryPath<'_>, entry: &Entry) -> Result<bool, ImportError> {
        let directory = matches!(entry.kind, EntryKind::Directory);
        match whiteout::meaning(path.components(), directory) {
            Meaning::Entry => return Ok(false),
            Meaning::Hides(name) => self.to.tree.hide(path, name)?,
            Meaning::HidesChildren => self.to.tree.hide_children(path)?,
            Meaning::Nothing(why) => return self.leave_out(entry, Some(why)).map(|()| true),
            Meaning::Malformed => {
                let why = Refusal::MalformedWhiteout;
                return Err(ImportError::refused(path.raw(), why));
            }
        }
        self.leave_out(entry, None)?;
        Ok(true)
    }

    fn entry(&mut self, header: &::tar::Header, entry: Entry) -> Result<(), ImportError> {
        let limits = *self.to.tree.limits();
        let parse = match self.is_layer {
            true => EntryPath::parse_rooted,
            false => EntryPath::parse,
        };
        let path = parse(&entry.path, &limits)?;
        if self.is_layer && self.whiteout(&path, &entry)? {
            return Ok(());
        }
        if let EntryKind::Ignored(why) = entry.kind {
            return self.leave_out(&entry, why);
        }
        let refused = |why: Refusal| ImportError::refused(&entry.path, why);
        let meta = entry.meta;
        let kind = match entry.kind {
            EntryKind::File => {
                let segments = sparse::dense(entry.stored);
                let kind = self.file(&path, &segments, entry.stored, entry.stored)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::GnuSparse { real_size } => {
                let segments = sparse::gnu(header, &mut self.headers.stream)?;
                let kind = self.file(&path, &segments, real_size, entry.stored)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::PaxSparse { real_size, map } => {
                let segments = map;
                let kind = self.file(&path, &segments, real_size, entry.stored)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::PaxSparseInline { real_size } => {
                let (segments, used) = sparse::inline(&mut self.headers.stream, entry.stored)?;
                let kind = self.file(&path, &segments, real_size, entry.stored - used)?;
                return self.insert(&path, meta, kind);
            }
            EntryKind::HardLink(target) => {
                let target = parse(&target, &limits).map_err(|error| match error {
                    ImportError::Refused { why, .. } => {
                        let both = [&entry.path[..], b" (link to ", &target, b")"].concat();
                        ImportError::refused(&both, why)
                    }
                    other => other,
                })?;
                return self.to.tree.hard_link(&path, &target);
            }
            EntryKind::Ignored(_) => return Ok(()),
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
        self.to.tree.insert(path, Node { meta, kind })?;
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
        sparse::check(segments, size, stored).map_err(|why| self.headers.stream.corrupt(why))?;
        self.to.tree.admit_content(path.raw(), size)?;
        let mut blocks = Blocks::new(self.to.spool, &mut self.buffer);
        let mut at = 0;
        for segment in segments {
            blocks.skip(segment.offset - at)?;
            let mut left = segment.length;
            while left > 0 {
                self.to.watch.cancel.check()?;
                let take = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(self.chunk.len());
                let chunk = &mut self.chunk[..take];
                self.headers.stream.read_exact(chunk)?;
                blocks.write(chunk)?;
                left -= take as u64;
                let bytes = self.to.before + self.headers.stream.offset();
                let entries = self.to.tree.entries();
                self.to.watch.progress.advance(bytes, entries);
            }
            at = segment.offset + segment.length;
        }
        blocks.finish()?;
        self.headers.stream.skip_padding(stored)?;
        Ok(Kind::File {
            size,
            content: Content::Spooled(self.to.spool.take_runs()),
        })
    }
}

/// Names what was left out, up to a number that a user may read.
pub(crate) fn note(skipped: &mut Vec<Skipped>, entry: &[u8], why: &str) {
    let (entry, why) = match skipped.len() {
        0..MAX_SKIPPED => (show(entry), why.to_owned()),
        MAX_SKIPPED => (
            "…".to_owned(),
            "more was left out than is named here".to_owned(),
        ),
        _ => return,
    };
    skipped.push(Skipped { entry, why });
}

#[cfg(test)]
mod tests;
