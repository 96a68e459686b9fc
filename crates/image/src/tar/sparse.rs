//! Sparse files in archives: where the stored bytes belong.

use super::number::parse_unsigned;
use super::pax::decimal;
use super::stream::{BLOCK, Stream};
use crate::error::ImportError;

/// A map has no more segments than this.
const MAX_SEGMENTS: usize = 1 << 20;
/// One segment in a GNU header: offset and length, 12 bytes each.
const GNU_SEGMENT: usize = 24;

/// Stored bytes and their place in the file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The map of a file that is not sparse.
pub(super) fn dense(size: u64) -> [Segment; 1] {
    [Segment {
        offset: 0,
        length: size,
    }]
}

/// Segments must ascend, stay inside the file, and add up to what is stored.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for segment in segments {
        if segment.offset < end {
            return Err("a sparse file's map goes backwards");
        }
        end = match segment.offset.checked_add(segment.length) {
            Some(end) if end <= size => end,
            _ => return Err("a sparse file's map goes beyond its size"),
        };
        sum += segment.length;
    }
    match sum == stored {
        true => Ok(()),
        false => Err("a sparse file's map does not match its stored size"),
    }
}

/// Old GNU format: four segments in the header, more in blocks that follow it.
pub(super) fn gnu(
    header: &::tar::Header,
    stream: &mut Stream<'_>,
) -> Result<Vec<Segment>, ImportError> {
    let mut segments = Vec::new();
    let bytes = header.as_bytes();
    add_gnu(&mut segments, &bytes[386..482], stream)?;
    let mut more = bytes[482] != 0;
    while more {
        let mut block = [0; BLOCK];
        stream.read_exact(&mut block)?;
        let before = segments.len();
        add_gnu(&mut segments, &block[..504], stream)?;
        if segments.len() == before {
            return Err(stream.corrupt("a sparse file's map has an empty part"));
        }
        more = block[504] != 0;
    }
    Ok(segments)
}

fn add_gnu(
    segments: &mut Vec<Segment>,
    table: &[u8],
    stream: &Stream<'_>,
) -> Result<(), ImportError> {
    for raw in table.chunks_exact(GNU_SEGMENT).filter(|raw| raw[0] != 0) {
        let (offset, length) = raw.split_at(12);
        match (parse_unsigned(offset), parse_unsigned(length)) {
            (Some(offset), Some(length)) if segments.len() < MAX_SEGMENTS => {
                segments.push(Segment { offset, length });
            }
            _ => return Err(stream.corrupt("a sparse file's map is malformed")),
        }
    }
    Ok(())
}

/// PAX format 1.0: decimal lines before the data, padded to a block. Also says how many of the
/// entry's stored bytes the map took.
pub(super) fn inline(
    stream: &mut Stream<'_>,
    stored: u64,
) -> Result<(Vec<Segment>, u64), ImportError> {
    let mut lines = Lines {
        block: [0; BLOCK],
        at: BLOCK,
        used: 0,
        stored,
    };
    let count = lines.number(stream)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > MAX_SEGMENTS {
        return Err(stream.corrupt("a sparse file's map is too long"));
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        let offset = lines.number(stream)?;
        let length = lines.number(stream)?;
        segments.push(Segment { offset, length });
    }
    Ok((segments, lines.used))
}

struct Lines {
    block: [u8; BLOCK],
    at: usize,
    used: u64,
    stored: u64,
}

impl Lines {
    fn number(&mut self, stream: &mut Stream<'_>) -> Result<u64, ImportError> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                self.used += BLOCK as u64;
                if self.used > self.stored {
                    return Err(stream.corrupt("a sparse file's map goes beyond its entry"));
                }
                stream.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' if !digits.is_empty() => break,
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                _ => return Err(stream.corrupt("a sparse file's map is malformed")),
            }
        }
        decimal(&digits).ok_or_else(|| stream.corrupt("a sparse file's map is malformed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_lie_are_refused() {
        let map = |pairs: &[(u64, u64)]| -> Vec<Segment> {
            pairs
                .iter()
                .map(|(offset, length)| Segment {
                    offset: *offset,
                    length: *length,
                })
                .collect()
        };
        assert!(check(&map(&[(0, 10), (20, 5), (30, 0)]), 30, 15).is_ok());
        assert!(check(&map(&[(0, 10), (5, 5)]), 30, 15).is_err());
        assert!(check(&map(&[(20, 11)]), 30, 11).is_err());
        assert!(check(&map(&[(u64::MAX, 1)]), u64::MAX, 1).is_err());
        assert!(check(&map(&[(0, 10)]), 30, 11).is_err());
    }
}
