//! The little of ELF that is needed to judge a file: x86-64 headers, segments, sections and notes.
//!
//! Files come from outside: every offset and count is checked against the file's length, and every
//! table that is read into memory has a bound.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Random access to a file's bytes, in memory or not.
pub(crate) trait ReadAt {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Fills `buffer` from `offset`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = start
            .checked_add(buffer.len())
            .and_then(|end| self.get(start..end));
        match source {
            Some(source) => {
                buffer.copy_from_slice(source);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// An open file whose size was taken once.
pub(crate) struct SizedFile {
    pub(crate) file: File,
    pub(crate) size: u64,
}

impl ReadAt for SizedFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// Why a file cannot be read as ELF for x86-64. The text completes "it is …".
#[derive(Debug, thiserror::Error)]
pub(crate) enum ElfError {
    #[error("not an ELF file")]
    NotElf,
    #[error("an ELF file, but not for 64-bit x86")]
    OtherMachine,
    #[error("a damaged ELF file: {0}")]
    Damaged(&'static str),
    #[error("unreadable")]
    Io(#[from] io::Error),
}

pub(crate) const ET_REL: u16 = 1;
pub(crate) const ET_EXEC: u16 = 2;
pub(crate) const ET_DYN: u16 = 3;
pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_INTERP: u32 = 3;
pub(crate) const PT_NOTE: u32 = 4;

const HEADER_LEN: usize = 64;
const SEGMENT_LEN: u16 = 56;
const SECTION_LEN: u16 = 64;
const EM_X86_64: u16 = 62;
/// Real kernels and programs have a dozen segments.
const MAX_SEGMENTS: u16 = 256;
/// Names of sections, and notes: real ones are a few KiB.
const MAX_TABLE: u64 = 1 << 20;

/// A program header.
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_size: u64,
}

/// A parsed header and its segments, over the bytes they came from.
pub(crate) struct Elf<'a, R: ?Sized> {
    source: &'a R,
    pub(crate) kind: u16,
    pub(crate) segments: Vec<Segment>,
    section_table: u64,
    section_count: u16,
    names_index: u16,
}

impl<'a, R: ReadAt + ?Sized> Elf<'a, R> {
    /// Reads the header and the segments, and checks that every segment lies inside the file.
    pub(crate) fn parse(source: &'a R) -> Result<Self, ElfError> {
        if source.size() < HEADER_LEN as u64 {
            return Err(ElfError::NotElf);
        }
        let mut header = [0; HEADER_LEN];
        source.read_at(&mut header, 0)?;
        if &header[..4] != b"\x7fELF" {
            return Err(ElfError::NotElf);
        }
        let (class, data) = (header[4], header[5]);
        if class != 2 || data != 1 || le16(&header, 18) != EM_X86_64 {
            return Err(ElfError::OtherMachine);
        }
        let count = le16(&header, 56);
        if count > MAX_SEGMENTS {
            return Err(ElfError::Damaged("more segments than a program can have"));
        }
        if count > 0 && le16(&header, 54) != SEGMENT_LEN {
            return Err(ElfError::Damaged("program headers of an unknown size"));
        }
        let section_count = le16(&header, 60);
        if section_count > 0 && le16(&header, 58) != SECTION_LEN {
            return Err(ElfError::Damaged("section headers of an unknown size"));
        }
        let mut elf = Self {
            source,
            kind: le16(&header, 16),
            segments: Vec::new(),
            section_table: le64(&header, 40),
            section_count,
            names_index: le16(&header, 62),
        };
        let table = elf.bytes(le64(&header, 32), u64::from(count) * u64::from(SEGMENT_LEN))?;
        elf.segments = table
            .chunks_exact(usize::from(SEGMENT_LEN))
            .map(segment)
            .collect();
        let inside = |segment: &Segment| {
            segment
                .offset
                .checked_add(segment.file_size)
                .is_some_and(|end| end <= source.size())
        };
        if elf.segments.iter().all(inside) {
            Ok(elf)
        } else {
            Err(ElfError::Damaged("it is cut short"))
        }
    }

    /// Whether a segment of this kind is there.
    pub(crate) fn has_segment(&self, kind: u32) -> bool {
        self.segments.iter().any(|segment| segment.kind == kind)
    }

    /// The bytes of the first section with this name.
    pub(crate) fn section(&self, name: &[u8]) -> Result<Option<Vec<u8>>, ElfError> {
        let length = u64::from(self.section_count) * u64::from(SECTION_LEN);
        let table = self.bytes(self.section_table, length)?;
        let headers: Vec<&[u8]> = table.chunks_exact(usize::from(SECTION_LEN)).collect();
        let Some(names) = headers.get(usize::from(self.names_index)) else {
            return Ok(None);
        };
        let names = self.bytes(le64(names, 24), le64(names, 32))?;
        let named = |header: &&&[u8]| {
            usize::try_from(le32(header, 0))
                .ok()
                .and_then(|start| names.get(start..))
                .and_then(|rest| rest.split(|byte| *byte == 0).next())
                == Some(name)
        };
        match headers.iter().find(named) {
            Some(header) => self.bytes(le64(header, 24), le64(header, 32)).map(Some),
            None => Ok(None),
        }
    }

    /// Whether a note of this owner and type is there (ELF gABI, "Note Section").
    pub(crate) fn has_note(&self, owner: &[u8], kind: u32) -> Result<bool, ElfError> {
        for segment in self
            .segments
            .iter()
            .filter(|segment| segment.kind == PT_NOTE)
        {
            let bytes = self.bytes(segment.offset, segment.file_size)?;
            let mut rest = bytes.as_slice();
            while rest.len() >= 12 {
                let name_len = aligned(le32(rest, 0));
                let next = name_len
                    .saturating_add(aligned(le32(rest, 4)))
                    .saturating_add(12);
                let name = rest
                    .get(12..12_usize.saturating_add(name_len))
                    .unwrap_or_default();
                if le32(rest, 8) == kind && name.starts_with(owner) {
                    return Ok(true);
                }
                rest = rest.get(next..).unwrap_or_default();
            }
        }
        Ok(false)
    }

    fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, ElfError> {
        if length > MAX_TABLE * 4 {
            return Err(ElfError::Damaged("a table is larger than any real one"));
        }
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.source.size())
        {
            return Err(ElfError::Damaged("it is cut short"));
        }
        let length = usize::try_from(length).map_err(|_| ElfError::Damaged("a table's size"))?;
        let mut bytes = vec![0; length];
        self.source.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

fn segment(header: &[u8]) -> Segment {
    Segment {
        kind: le32(header, 0),
        offset: le64(header, 8),
        address: le64(header, 16),
        file_size: le64(header, 32),
    }
}

/// A note's field, padded to the next word.
fn aligned(length: u32) -> usize {
    usize::try_from(length)
        .unwrap_or(usize::MAX)
        .saturating_add(3)
        & !3
}

/// The little-endian number at `at`; zero beyond the end.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// The little-endian number at `at`; zero beyond the end.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// The little-endian number at `at`; zero beyond the end.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .and_then(|slice| slice.try_into().ok())
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use proptest::prelude::*;

    #[test]
    fn a_section_is_found_by_name() {
        let module = fixture::module("fuse", "6.1.0", &[], None);
        let elf = Elf::parse(module.as_slice()).unwrap();
        assert_eq!(elf.kind, ET_REL);
        assert!(
            elf.section(b".modinfo")
                .unwrap()
                .unwrap()
                .starts_with(b"license=GPL\0")
        );
        assert!(elf.section(b".text").unwrap().is_none());
    }

    #[test]
    fn the_pvh_note_is_found_only_where_it_is() {
        let with = fixture::vmlinux("6.12.1-cowslip", true);
        let without = fixture::vmlinux("6.12.1-cowslip", false);
        assert!(
            Elf::parse(with.as_slice())
                .unwrap()
                .has_note(b"Xen\0", 18)
                .unwrap()
        );
        assert!(
            !Elf::parse(without.as_slice())
                .unwrap()
                .has_note(b"Xen\0", 18)
                .unwrap()
        );
    }

    #[test]
    fn a_truncated_file_is_damaged_not_a_crash() {
        let whole = fixture::vmlinux("6.12.1-cowslip", true);
        for length in 0..whole.len() {
            assert!(Elf::parse(&whole[..length]).is_err(), "cut at {length}");
        }
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            mut tail in proptest::collection::vec(any::<u8>(), 64..512),
            valid_start in any::<bool>(),
        ) {
            if valid_start {
                tail[..6].copy_from_slice(b"\x7fELF\x02\x01");
                tail[18..20].copy_from_slice(&62_u16.to_le_bytes());
                tail[54..56].copy_from_slice(&56_u16.to_le_bytes());
                tail[58..60].copy_from_slice(&64_u16.to_le_bytes());
            }
            if let Ok(elf) = Elf::parse(tail.as_slice()) {
                let _ = elf.section(b".modinfo");
                let _ = elf.has_note(b"Xen\0", 18);
            }
        }
    }
}
