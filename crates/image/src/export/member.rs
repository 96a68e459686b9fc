//! Members of a tar: ustar headers, and PAX records before them for what does not fit there.
//!
//! The `tar` crate's header is used for its fields. Its PAX support writes what it is given in one
//! piece and knows neither times nor owners; the records are few, so they are written here.

use std::io::{self, Write};

use crate::node::{Device, Time, Xattr};

const BLOCK: u64 = 512;
static ZEROS: [u8; 512] = [0; 512];
/// What fits in a header's name and link target, in bytes.
const NAME: usize = 100;
/// The largest number of 11 and of 7 octal digits.
const MOST_11: u64 = 0o777_7777_7777;
const MOST_7: u32 = 0o777_7777;

/// What kind of member it is: the header's type flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flag {
    File = b'0',
    HardLink = b'1',
    Symlink = b'2',
    CharDevice = b'3',
    BlockDevice = b'4',
    Directory = b'5',
    Fifo = b'6',
}

/// One member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) flag: Flag,
    /// A directory's ends in a slash.
    pub(super) path: &'a [u8],
    /// Where a link leads; empty for others.
    pub(super) target: &'a [u8],
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) device: Option<Device>,
    pub(super) xattrs: &'a [Xattr],
    /// Bytes that follow, a sparse file's map included.
    pub(super) stored: u64,
    /// The size of a sparse file, whose map is before its bytes (GNU format 1.0).
    pub(super) sparse: Option<u64>,
}

impl Member<'_> {
    /// A plain file of root's, as old as time.
    pub(super) fn plain(path: &[u8], stored: u64) -> Member<'_> {
        Member {
            flag: Flag::File,
            path,
            target: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            device: None,
            xattrs: &[],
            stored,
            sparse: None,
        }
    }

    /// What the header cannot say.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if self.sparse.is_none() && needs_record(self.path) {
            record(&mut records, b"path", self.path);
        }
        if needs_record(self.target) {
            record(&mut records, b"linkpath", self.target);
        }
        let mut number = |key: &str, value: u64| {
            record(&mut records, key.as_bytes(), value.to_string().as_bytes());
        };
        if self.stored > MOST_11 {
            number("size", self.stored);
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > MOST_7 {
                number(key, id.into());
            }
        }
        if self.mtime.nanos != 0 || header_time(self.mtime).is_none() {
            record(&mut records, b"mtime", decimal_time(self.mtime).as_bytes());
        }
        if let Some(size) = self.sparse {
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", self.path);
            let size = size.to_string();
            record(&mut records, b"GNU.sparse.realsize", size.as_bytes());
        }
        for xattr in self.xattrs {
            let key = [b"SCHILY.xattr.", &*xattr.name].concat();
            record(&mut records, &key, &xattr.value);
        }
        records
    }

    fn header(&self) -> tar::Header {
        // Who does not know the records should at least not take the map for content.
        let name = match self.sparse {
            Some(_) => [b"GNUSparseFile.0/", last_name(self.path)].concat(),
            None => self.path.to_vec(),
        };
        let mut header = blank(self.flag as u8, &name, self.stored);
        let old = header.as_old_mut();
        copy(&mut old.linkname, self.target);
        header.set_mode(self.mode.into());
        // What is in a record is 0 here, as in other writers' archives.
        let id = |id| if id > MOST_7 { 0 } else { id };
        header.set_uid(id(self.uid).into());
        header.set_gid(id(self.gid).into());
        header.set_mtime(header_time(self.mtime).unwrap_or(0));
        if let (Some(device), Some(ustar)) = (self.device, header.as_ustar_mut()) {
            ustar.set_device_major(device.major);
            ustar.set_device_minor(device.minor);
        }
        header.set_cksum();
        header
    }
}

/// A header with a name cut to what fits.
fn blank(flag: u8, name: &[u8], size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    copy(&mut header.as_old_mut().name, name);
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(if size > MOST_11 { 0 } else { size });
    header.set_cksum();
    header
}

fn copy(field: &mut [u8; NAME], bytes: &[u8]) {
    let length = bytes.len().min(NAME);
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Long names, and those in UTF-8, which a record has by definition. Other bytes have no meaning that
/// a record could give them: in the header they are taken as they are.
fn needs_record(name: &[u8]) -> bool {
    name.len() > NAME || (!name.is_ascii() && str::from_utf8(name).is_ok())
}

/// The last name of a path, without the slash of a directory.
fn last_name(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let start = path.iter().rposition(|byte| *byte == b'/');
    &path[start.map_or(0, |slash| slash + 1)..]
}

/// Whole seconds, where the header can have them.
fn header_time(time: Time) -> Option<u64> {
    u64::try_from(time.secs)
        .ok()
        .filter(|secs| *secs <= MOST_11)
}

/// Seconds with as many digits after the point as it takes; before 1970 the fraction counts backwards.
fn decimal_time(time: Time) -> String {
    let (sign, secs, nanos) = match (time.secs < 0, time.nanos) {
        (false, nanos) => ("", time.secs.unsigned_abs(), nanos),
        (true, 0) => ("-", time.secs.unsigned_abs(), 0),
        (true, nanos) => ("-", time.secs.unsigned_abs() - 1, 1_000_000_000 - nanos),
    };
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits too.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    // Growing by its digits can give it one more.
    for _ in 0..2 {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// Writes members one after the other, and counts the bytes.
pub(super) struct Writer<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, bytes: 0 }
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn into_inner(self) -> W {
        self.to
    }

    /// Begins a member; [`Self::data`] and [`Self::pad`] bring what it stores.
    pub(super) fn begin(&mut self, member: &Member<'_>) -> io::Result<()> {
        let records = member.records();
        if !records.is_empty() {
            let name = [b"PaxHeaders/", last_name(member.path)].concat();
            let size = records.len() as u64;
            self.data(blank(b'x', &name, size).as_bytes())?;
            self.data(&records)?;
            self.pad(size)?;
        }
        self.data(member.header().as_bytes())
    }

    /// Writes bytes as they are.
    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Fills the last block of what stores `size` bytes.
    pub(super) fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
        self.data(&ZEROS[..rest])
    }

    /// Writes the end marker.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.data(&ZEROS)?;
        self.data(&ZEROS)?;
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        let made = |value: usize| {
            let mut records = Vec::new();
            record(&mut records, b"a", &vec![b'v'; value]);
            records
        };
        assert_eq!(made(1), b"6 a=v\n");
        // 9 to 11, 99 to 101 and 999 to 1001: where the length gets another digit.
        for value in (0..20).chain(85..110).chain(980..1010) {
            let records = made(value);
            let space = records.iter().position(|byte| *byte == b' ').unwrap();
            let length = str::from_utf8(&records[..space]).unwrap().parse();
            assert_eq!(length, Ok(records.len()), "{value}");
        }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        let text = |secs, nanos| decimal_time(Time { secs, nanos });
        assert_eq!(text(0, 5), "0.000000005");
        assert_eq!(text(100, 500_000_000), "100.5");
        assert_eq!(text(-100, 0), "-100");
        assert_eq!(text(-2, 750_000_000), "-1.25");
        assert_eq!(text(-1, 1), "-0.999999999");
    }

    #[test]
    fn what_does_not_fit_the_header_is_in_records() {
        let long = [b"d/".repeat(60), b"name".to_vec()].concat();
        let mut member = Member::plain(&long, 9 << 30);
        member.uid = u32::MAX;
        let text = String::from_utf8(member.records()).unwrap();
        for part in [" size=9663676416\n", " uid=4294967295\n", "path=d/d/"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("gid") && !text.contains("mtime"), "{text}");
        assert!(Member::plain(b"short\xff", 5).records().is_empty());
        assert!(
            !Member::plain("caf\u{e9}".as_bytes(), 5)
                .records()
                .is_empty()
        );
    }
}
