//! The reader on its own: no image is made here.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::job::{Cancel, Limits, NoProgress};

fn read_bytes(bytes: impl Read, limits: Limits) -> Result<Tree, ImportError> {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(limits);
    let mut spool = Spool::create(dir.path()).unwrap();
    let cancel = Cancel::default();
    let watch = Watch {
        progress: &NoProgress,
        cancel: &cancel,
    };
    let to = Destination {
        tree: &mut tree,
        spool: &mut spool,
        watch,
        skipped: &mut Vec::new(),
        before: 0,
    };
    read(bytes, to).map(|()| tree)
}

fn archive() -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(5000);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "dir/file", &[b'x'; 5000][..])
        .unwrap();
    let long = "long/".repeat(30) + "name";
    header.set_size(3);
    builder.append_data(&mut header, long, &b"abc"[..]).unwrap();
    builder
        .append_pax_extensions([("mtime", &b"1.5"[..]), ("SCHILY.xattr.user.a", b"b")])
        .unwrap();
    builder
        .append_data(&mut header, "pax", &b"abc"[..])
        .unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

// covers the "a tar that is truncated"
#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let whole = archive();
    // One of the two zero blocks is the end marker, the other is padding.
    let end = whole.len() - 1024;
    // Every block's edges, and some places inside.
    for length in (0..end).filter(|n| matches!(n % 512, 0 | 1 | 511) || n % 97 == 0) {
        let error = read_bytes(&whole[..length], Limits::default()).unwrap_err();
        match length {
            0..512 => assert!(
                matches!(error, ImportError::NotATar(_)),
                "{length}: {error}"
            ),
            _ => assert!(
                matches!(error, ImportError::Truncated(_)),
                "{length}: {error}"
            ),
        }
    }
    for length in [end + 512, end + 700, whole.len()] {
        read_bytes(&whole[..length], Limits::default()).unwrap();
    }
}

#[test]
fn a_compressed_archive_cut_anywhere_is_an_error() {
    let whole = archive();
    for compressed in [
        gzip(&whole),
        zstd::encode_all(&whole[..], 1).unwrap(),
        xz(&whole),
    ] {
        read_bytes(&compressed[..], Limits::default()).unwrap();
        for length in 0..compressed.len() {
            let result = read_bytes(&compressed[..length], Limits::default());
            assert!(result.is_err(), "{length} of {}", compressed.len());
        }
    }
}

#[test]
fn what_follows_the_archive_is_an_error() {
    let mut joined = archive();
    joined.extend(archive());
    let error = read_bytes(&joined[..], Limits::default()).unwrap_err();
    assert!(matches!(error, ImportError::TrailingData), "{error}");
    let mut gzipped = gzip(&archive());
    gzipped.extend(b"garbage");
    assert!(read_bytes(&gzipped[..], Limits::default()).is_err());
    let mut padded = archive();
    padded.extend([0; 20 * 512]);
    read_bytes(&padded[..], Limits::default()).unwrap();
}

#[test]
fn what_is_no_tar_is_told_what_it_is() {
    let message = |bytes: &[u8]| match read_bytes(bytes, Limits::default()) {
        Err(error @ ImportError::NotATar(_)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(message(b"").contains("empty"));
    assert!(message(&[b'a'; 4096]).contains("no tar header"));
    assert!(message(b"BZh9......").contains("bzip2 -dc"));
    assert!(message(&gzip(b"hello")).contains("shorter"));
}

#[test]
fn bombs_stop_at_the_limits() {
    let limits = Limits {
        max_bytes: 1 << 20,
        max_entries: 10,
        ..Limits::default()
    };
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(64 << 20);
    let zeros = std::io::repeat(0).take(64 << 20);
    builder.append_data(&mut header, "zeros", zeros).unwrap();
    let error = read_bytes(&gzip(&builder.into_inner().unwrap())[..], limits).unwrap_err();
    assert!(
        matches!(
            error,
            ImportError::Limit {
                limit: 0x10_0000,
                ..
            }
        ),
        "{error}"
    );

    // A header that claims much and brings nothing is stopped before anything is reserved.
    for kind in *b"xgLK" {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_size(1 << 40);
        header.set_cksum();
        let error = read_bytes(&header.as_bytes()[..], limits).unwrap_err();
        assert!(matches!(error, ImportError::Corrupt { .. }), "{error}");
    }

    let mut builder = ::tar::Builder::new(Vec::new());
    for index in 0..11 {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(0);
        builder
            .append_data(&mut header, index.to_string(), &b""[..])
            .unwrap();
    }
    let error = read_bytes(&builder.into_inner().unwrap()[..], limits).unwrap_err();
    assert!(error.to_string().contains("10 entries"), "{error}");

    let padding = gzip(&vec![0; 128 << 20]);
    let error = read_bytes(&padding[..], limits).unwrap_err();
    assert!(
        error.to_string().contains("16777216 bytes of zeros"),
        "{error}"
    );
}

/// A header of any type, with its checksum, and what it stores.
fn header(kind: u8, name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Gives the same bytes again and again, and counts them.
struct Endless {
    bytes: Vec<u8>,
    given: u64,
}

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let length = self.bytes.len();
        let start = usize::try_from(self.given).unwrap() % length;
        let mut part = &self.bytes[start..];
        let mut rest = &mut *into;
        while !rest.is_empty() {
            let take = rest.len().min(part.len());
            rest[..take].copy_from_slice(&part[..take]);
            rest = &mut rest[take..];
            part = &self.bytes;
        }
        self.given += into.len() as u64;
        Ok(into.len())
    }
}

#[test]
fn bombs_of_nothing_but_headers_stop_early() {
    let long_record = [&b"1000000 comment="[..], &vec![b'x'; 999_983], b"\n"].concat();
    let empty_map = header(b'S', "sparse", b"");
    let cases = [
        ("16 extension headers", header(b'x', "x", &long_record)),
        ("16 extension headers", header(b'g', "g", b"9 a=bcde\n")),
        ("16 extension headers", header(b'L', "l", b"name\0")),
        (
            "bytes of headers",
            [header(b'x', "x", &long_record), header(b'0', "f", b"")].concat(),
        ),
        ("100 entries", header(b'Z', "unknown", b"")),
        ("content", header(b'Z', "unknown", &[0; 1 << 20])),
        ("content", header(b'V', "label", &[0; 1 << 20])),
        ("zeros", vec![0; 512]),
        // Its map goes on in blocks that have no part of it.
        ("empty part", {
            let mut block = empty_map;
            block[482] = 1;
            let sum: u32 = (0..512)
                .map(|at| {
                    if (148..156).contains(&at) {
                        32
                    } else {
                        u32::from(block[at])
                    }
                })
                .sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let mut next = vec![0; 512];
            next[504] = 1;
            [block, next].concat()
        }),
    ];
    for (why, bytes) in cases {
        let limits = Limits {
            max_entries: 100,
            max_bytes: 16 << 20,
            ..Limits::default()
        };
        let mut endless = Endless { bytes, given: 0 };
        let error = read_bytes(&mut endless, limits).unwrap_err();
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert!(
            endless.given < 40 << 20,
            "{why}: after {} bytes",
            endless.given
        );
    }
}

#[test]
fn a_decoder_of_xz_takes_no_more_memory_than_it_may() {
    let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
    options.dict_size(1 << 30);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    let check = liblzma::stream::Check::Crc32;
    let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(&archive()).unwrap();
    let error = read_bytes(&encoder.finish().unwrap()[..], Limits::default()).unwrap_err();
    assert!(matches!(error, ImportError::ReadTar { .. }), "{error}");
}

#[test]
fn attributes_are_bounded_in_number_and_size() {
    let limits = Limits {
        max_xattrs: 2,
        max_xattr_bytes: 50,
        ..Limits::default()
    };
    let with = |records: &[(&str, &[u8])]| {
        let mut builder = ::tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(header(b'0', "f", b""));
        bytes.extend([0; 1024]);
        read_bytes(&bytes[..], limits)
    };
    let [a, b, c] = ["a", "b", "c"].map(|name| format!("SCHILY.xattr.user.{name}"));
    with(&[(&a, b"1"), (&b, &[b'x'; 30])]).unwrap();
    let error = with(&[(&a, b"1"), (&b, b"2"), (&c, b"3")]).unwrap_err();
    assert!(error.to_string().contains("limit of 2 extended"), "{error}");
    let error = with(&[(&a, &[b'x'; 50])]).unwrap_err();
    assert!(
        error.to_string().contains("limit of 50 bytes of extended"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_damage_makes_it_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        mend in any::<bool>(),
    ) {
        let mut bytes = archive();
        for (place, value) in damage {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        if mend {
            // With right checksums the damage reaches the fields.
            for at in (0..bytes.len()).step_by(512) {
                let mut header = ::tar::Header::from_byte_slice(&bytes[at..at + 512]).clone();
                if header.as_ustar().is_some() || header.as_gnu().is_some() {
                    header.set_cksum();
                    bytes[at..at + 512].copy_from_slice(header.as_bytes());
                }
            }
        }
        let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
        let _ = read_bytes(&bytes[..], limits);
    }
}
