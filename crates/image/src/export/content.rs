//! Files' bytes: as they are, or with a map of where they belong where holes are worth one.

use std::io::Write;

use super::ExportError;
use super::member::{Member, Writer};
use crate::ext4::read::{Inode, ReadError, Reader};
use crate::spool::CHUNK;

/// Holes of fewer bytes than this in all are written as zeros: not every program knows maps.
const WORTH: u64 = 64 << 10;
/// A map has no more segments than this, 16 bytes of memory each, and no more than a reader takes.
const MAX_SEGMENTS: usize = (1 << 20) - 1;

/// Stored bytes and their place in the file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    offset: u64,
    length: u64,
}

/// Copies files of one file system, with a buffer that goes from file to file.
pub(super) struct Contents<'a> {
    reader: &'a Reader,
    buffer: Vec<u8>,
}

/// Told after each piece how many bytes have been written.
pub(super) type Advance<'a> = &'a dyn Fn(u64);

/// What went wrong: the image, or where it goes.
pub(super) enum CopyError {
    Read(ReadError),
    Write(ExportError),
}

impl From<ReadError> for CopyError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<std::io::Error> for CopyError {
    fn from(error: std::io::Error) -> Self {
        Self::Write(ExportError::write(error))
    }
}

impl<'a> Contents<'a> {
    pub(super) fn new(reader: &'a Reader) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
        }
    }

    /// Writes a file's header and its bytes. `member` says all but what is stored.
    pub(super) fn copy<W: Write>(
        &mut self,
        inode: &Inode,
        mut member: Member<'_>,
        to: &mut Writer<W>,
        advance: Advance<'_>,
    ) -> Result<(), CopyError> {
        let map = self
            .segments(inode)?
            .and_then(|segments| map(segments, inode.size));
        match &map {
            Some((text, data)) => {
                member.stored = text.len() as u64 + data;
                member.sparse = Some(inode.size);
            }
            None => member.stored = inode.size,
        }
        to.begin(&member)?;
        if let Some((text, _)) = &map {
            to.data(text)?;
        }
        self.bytes(inode, map.is_none(), to, advance)?;
        to.pad(member.stored)?;
        Ok(())
    }

    /// Where a file has data; `None` where that is in too many places.
    fn segments(&self, inode: &Inode) -> Result<Option<Vec<Segment>>, ReadError> {
        let block = self.reader.block_size();
        let mut segments: Vec<Segment> = Vec::new();
        for stretch in self.reader.extents(inode)? {
            let stretch = stretch?;
            if !stretch.written {
                continue;
            }
            let offset = stretch.logical * block;
            let length = (stretch.length * block).min(inode.size - offset);
            let full = segments.len() == MAX_SEGMENTS;
            match segments.last_mut() {
                Some(last) if last.offset + last.length == offset => last.length += length,
                _ if full => return Ok(None),
                _ => segments.push(Segment { offset, length }),
            }
        }
        Ok(Some(segments))
    }

    /// Writes the data, and zeros between where `dense` wants them.
    fn bytes<W: Write>(
        &mut self,
        inode: &Inode,
        dense: bool,
        to: &mut Writer<W>,
        advance: Advance<'_>,
    ) -> Result<(), CopyError> {
        let block = self.reader.block_size();
        let mut end = 0;
        for stretch in self.reader.extents(inode)? {
            let stretch = stretch?;
            if !stretch.written {
                continue;
            }
            let offset = stretch.logical * block;
            if dense {
                self.zeros(offset - end, to, advance)?;
            }
            let length = (stretch.length * block).min(inode.size - offset);
            let mut at = 0;
            while at < length {
                let take = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
                self.buffer.resize(self.buffer.len().max(take), 0);
                let chunk = &mut self.buffer[..take];
                self.reader.read_stretch(&stretch, at, chunk)?;
                to.data(chunk)?;
                at += take as u64;
                advance(to.bytes());
            }
            end = offset + length;
        }
        match dense {
            true => self.zeros(inode.size - end, to, advance),
            false => Ok(()),
        }
    }

    fn zeros<W: Write>(
        &mut self,
        mut count: u64,
        to: &mut Writer<W>,
        advance: Advance<'_>,
    ) -> Result<(), CopyError> {
        if count > 0 {
            self.buffer.clear();
        }
        while count > 0 {
            self.reader.check_cancelled()?;
            let take = usize::try_from(count).unwrap_or(CHUNK).min(CHUNK);
            self.buffer.resize(self.buffer.len().max(take), 0);
            to.data(&self.buffer[..take])?;
            count -= take as u64;
            advance(to.bytes());
        }
        Ok(())
    }
}

/// The map of a sparse file and how many bytes it leaves; `None` where there are few holes.
///
/// Decimal lines, padded to a block: how many segments, then offset and length of each. The last
/// segment must end where the file does, even if it is empty: GNU tar gives the file its size by that.
fn map(mut segments: Vec<Segment>, size: u64) -> Option<(Vec<u8>, u64)> {
    let data: u64 = segments.iter().map(|segment| segment.length).sum();
    if size - data < WORTH {
        return None;
    }
    let end = segments.last().map_or(0, |last| last.offset + last.length);
    if end < size {
        segments.push(Segment {
            offset: size,
            length: 0,
        });
    }
    let mut text = format!("{}\n", segments.len()).into_bytes();
    for segment in &segments {
        let line = format!("{}\n{}\n", segment.offset, segment.length);
        text.extend_from_slice(line.as_bytes());
    }
    text.resize(text.len().next_multiple_of(512), 0);
    Some((text, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_holes_are_worth_a_map() {
        let data = |offset, length| Segment { offset, length };
        assert!(map(vec![data(0, 10)], 10).is_none());
        assert!(map(vec![data(0, 10)], 10 + WORTH - 1).is_none());
        let (text, stored) = map(vec![data(0, 10)], 10 + WORTH).unwrap();
        assert_eq!((text.len(), stored), (512, 10));
        assert!(text.starts_with(b"2\n0\n10\n65546\n0\n\0"));
        let (text, _) = map(vec![data(WORTH, 5)], WORTH + 5).unwrap();
        assert!(text.starts_with(b"1\n65536\n5\n\0"));
        assert!(
            map(Vec::new(), WORTH)
                .unwrap()
                .0
                .starts_with(b"1\n65536\n0\n\0")
        );
        assert!(map(Vec::new(), 0).is_none());
    }
}
