//! One entry: a header and the extensions before it, as one thing.

use super::number::{parse, parse_unsigned};
use super::pax::Pax;
use super::sparse::Segment;
use crate::node::{Meta, Time};

/// An entry of the archive.
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) kind: EntryKind,
    /// Bytes that follow the header, padding not counted.
    pub(super) stored: u64,
}

/// What an entry makes.
pub(super) enum EntryKind {
    File,
    /// Old GNU format: the map is in and after the header.
    GnuSparse {
        real_size: u64,
    },
    /// PAX formats 0.0 and 0.1: the map is in the records.
    PaxSparse {
        real_size: u64,
        map: Vec<Segment>,
    },
    /// PAX format 1.0: the map is before the data.
    PaxSparseInline {
        real_size: u64,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    /// Nothing; with a reason where the user should know.
    Ignored(Option<&'static str>),
}

/// The stored size that a header claims.
pub(super) fn size(header: &::tar::Header) -> Result<u64, &'static str> {
    parse_unsigned(&header.as_old().size).ok_or("an entry's size is malformed")
}

impl Entry {
    pub(super) fn new(header: &::tar::Header, pax: Pax) -> Result<Self, &'static str> {
        let old = header.as_old();
        let sparse = pax.sparse;
        let path = match (sparse.name, pax.path) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => header.path_bytes().into_owned(),
        };
        let link = match pax.link_path {
            Some(link) => link,
            None => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let id = |given: Option<u32>, field: &[u8]| match given {
            Some(id) => Ok(id),
            None => parse_unsigned(field).ok_or("an entry's owner is malformed"),
        };
        let mode: u32 = parse_unsigned(&old.mode).ok_or("an entry's mode is malformed")?;
        let meta = Meta {
            mode: match header.entry_type().as_byte() {
                // Linux has no others, whatever the archive says.
                b'2' => 0o777,
                _ => u16::try_from(mode & 0o7777).unwrap_or(0),
            },
            uid: id(pax.uid, &old.uid)?,
            gid: id(pax.gid, &old.gid)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time {
                    secs: parse(&old.mtime)
                        .and_then(|secs| i64::try_from(secs).ok())
                        .ok_or("an entry's time is malformed")?,
                    nanos: 0,
                },
            },
            xattrs: pax.xattrs,
        };
        let device = |field: &[u8]| parse_unsigned(field).ok_or("a device number is malformed");
        let devices = || {
            let ustar = header.as_ustar().map(|h| (&h.dev_major, &h.dev_minor));
            let gnu = header.as_gnu().map(|h| (&h.dev_major, &h.dev_minor));
            let (major, minor) = ustar.or(gnu).ok_or("a device has no number")?;
            Ok::<_, &'static str>((device(major)?, device(minor)?))
        };
        let real_size = sparse.real_size;
        let named_directory = path.ends_with(b"/");
        let kind = match header.entry_type().as_byte() {
            0 | b'0' if named_directory => EntryKind::Directory,
            0 | b'0' | b'7' => match (sparse.major, sparse.minor, real_size) {
                (Some(1), Some(0), Some(real_size)) => EntryKind::PaxSparseInline { real_size },
                (None | Some(0), _, Some(real_size)) => EntryKind::PaxSparse {
                    real_size,
                    map: sparse.map,
                },
                (None, None, None) => EntryKind::File,
                _ => return Err("a sparse file has an unknown format"),
            },
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => devices().map(|(major, minor)| EntryKind::CharDevice(major, minor))?,
            b'4' => devices().map(|(major, minor)| EntryKind::BlockDevice(major, minor))?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => EntryKind::GnuSparse {
                real_size: parse_unsigned(&header.as_bytes()[483..495])
                    .ok_or("a sparse file's size is malformed")?,
            },
            // A volume label names the archive, not a file.
            b'V' => EntryKind::Ignored(None),
            _ => EntryKind::Ignored(Some("entries of this type have no meaning in an image")),
        };
        // These have no data, whatever their size field says: that is what the tools agree on.
        let stored = match kind {
            EntryKind::Directory
            | EntryKind::Symlink(_)
            | EntryKind::HardLink(_)
            | EntryKind::Fifo
            | EntryKind::CharDevice(..)
            | EntryKind::BlockDevice(..) => 0,
            _ => match pax.size {
                Some(size) => size,
                None => size(header)?,
            },
        };
        Ok(Self {
            path,
            meta,
            kind,
            stored,
        })
    }
}
