//! PAX records: `LENGTH KEY=VALUE\n`, which override what the next header says.

use super::sparse::Segment;
use crate::node::{Time, Xattr};

/// The records that matter to an image.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: PaxSparse,
}

/// What GNU tar says about sparse files in PAX archives.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Formats 0.0 and 0.1 have the map here, format 1.0 has it before the data.
    pub(super) map: Vec<Segment>,
}

impl Pax {
    /// Adds the records of one extension header; later ones win.
    pub(super) fn merge(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        const MALFORMED: &str = "a PAX record is malformed";
        while !records.is_empty() {
            let space = records.iter().position(|b| *b == b' ').ok_or(MALFORMED)?;
            let length: usize = decimal(&records[..space]).ok_or(MALFORMED)?;
            let record = records.get(space + 1..length).ok_or(MALFORMED)?;
            let record = record.strip_suffix(b"\n").ok_or(MALFORMED)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(MALFORMED)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const NUMBER: &str = "a PAX record has a malformed number";
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.retain(|xattr| *xattr.name != *name);
            self.xattrs.push(Xattr {
                name: name.into(),
                value: value.into(),
            });
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or(NUMBER)?),
            b"uid" => self.uid = Some(decimal(value).ok_or(NUMBER)?),
            b"gid" => self.gid = Some(decimal(value).ok_or(NUMBER)?),
            b"mtime" => self.mtime = Some(time(value).ok_or(NUMBER)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value).ok_or(NUMBER)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(decimal(value).ok_or(NUMBER)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = Some(decimal(value).ok_or(NUMBER)?);
            }
            b"GNU.sparse.offset" => {
                let offset = decimal(value).ok_or(NUMBER)?;
                self.sparse.map.push(Segment { offset, length: 0 });
            }
            b"GNU.sparse.numbytes" => {
                let last = self.sparse.map.last_mut().ok_or(NUMBER)?;
                last.length = decimal(value).ok_or(NUMBER)?;
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|b| *b == b',').map(decimal).collect();
                let numbers = numbers.ok_or(NUMBER)?;
                let (pairs, []) = numbers.as_chunks::<2>() else {
                    return Err(NUMBER);
                };
                let segment = |[offset, length]: &[u64; 2]| Segment {
                    offset: *offset,
                    length: *length,
                };
                self.sparse.map = pairs.iter().map(segment).collect();
            }
            _ => {}
        }
        Ok(())
    }
}

/// Plain decimal digits, nothing else.
pub(super) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional sign and fraction; what is finer than nanoseconds is cut off.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let secs: i64 = decimal(&text[..point])?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nanos = digits
        .take(9)
        .fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, _) => Time { secs, nanos },
        (true, 0) => Time { secs: -secs, nanos },
        (true, _) => Time {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_that_matter() {
        let mut pax = Pax::default();
        pax.merge(b"12 path=a\nb\n20 mtime=-1.5000000\n30 SCHILY.xattr.user.note=a=b\n8 foo=1\n")
            .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(
            pax.mtime,
            Some(Time {
                secs: -2,
                nanos: 500_000_000
            })
        );
        assert_eq!(
            (&*pax.xattrs[0].name, &*pax.xattrs[0].value),
            (&b"user.note"[..], &b"a=b"[..])
        );
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [
            "x",
            "5 a=b\n",
            "0 a=b\n",
            "99 a=b\n",
            "6 ab=\n\n",
            "-6 a=b\n",
            "9 size=x\n",
            "7 a=bc ",
        ] {
            assert!(Pax::default().merge(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let huge = format!("{} a=b\n", usize::MAX);
        assert!(Pax::default().merge(huge.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(
            prop_oneof![Just(b' '), Just(b'='), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..60)) {
            let _ = Pax::default().merge(&bytes);
        }
    }
}
