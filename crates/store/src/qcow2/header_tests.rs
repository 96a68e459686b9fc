//! The header, written and read; hostile ones too.

use cowslip_model::DiskFormat;
use proptest::prelude::*;

use super::format::{CLUSTER, CLUSTER_BITS, field};
use super::read::{HEAD_LIMIT, HeaderError, Overlay, read_header};
use super::write::{OverlayError, empty_overlay};

const GIB: u64 = 1 << 30;

fn image() -> Vec<u8> {
    empty_overlay(
        3 * GIB + 512,
        b"../templates/00/image.ext4",
        DiskFormat::Raw,
    )
    .unwrap()
}

fn head_of(image: &[u8]) -> Result<Overlay, HeaderError> {
    read_header(&image[..image.len().min(HEAD_LIMIT)], image.len() as u64)
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn what_is_written_is_read() {
    let found = head_of(&image()).unwrap();
    let expected = Overlay {
        size: 3 * GIB + 512,
        cluster_bits: CLUSTER_BITS,
        extended_l2: true,
        l1_offset: 3 * CLUSTER,
        backing: b"../templates/00/image.ext4".to_vec(),
        backing_format: b"raw".to_vec(),
    };
    assert_eq!(found, expected);
}

#[test]
fn impossible_disks_are_refused() {
    // covers R6
    let make = |size, name: &[u8]| empty_overlay(size, name, DiskFormat::Raw).unwrap_err();
    assert_eq!(make(0, b"a"), OverlayError::Empty);
    assert_eq!(make(513, b"a"), OverlayError::Sectors);
    assert_eq!(make(u64::MAX / 512 * 512, b"a"), OverlayError::TooLarge);
    assert_eq!(make(GIB, b""), OverlayError::Name);
    assert_eq!(make(GIB, &[b'a'; 1024]), OverlayError::Name);
    // The largest that fits: 32 MiB of L1 table, 1 GiB an entry.
    let largest = empty_overlay(GIB << 22, b"a", DiskFormat::Raw).unwrap();
    assert_eq!(largest.len() as u64, 3 * CLUSTER + (32 << 20));
    assert!(head_of(&largest).is_ok());
    assert_eq!(make((GIB << 22) + 512, b"a"), OverlayError::TooLarge);
}

#[test]
fn every_cut_is_noticed() {
    let image = image();
    for length in 0..image.len() {
        let head = &image[..length.min(HEAD_LIMIT)];
        assert!(
            read_header(head, length as u64).is_err(),
            "a file of {length} bytes was taken"
        );
    }
}

#[test]
fn hostile_headers_are_refused() {
    let feature = |bit: u64| {
        with(
            field::INCOMPATIBLE,
            &((1 << 4) | (1_u64 << bit)).to_be_bytes(),
        )
    };
    let extension = |kind: u32| with(120, &kind.to_be_bytes());
    let cases: [(&str, Vec<u8>); 16] = [
        ("no qcow2", with(0, b"QFJ")),
        ("version 2", with(field::VERSION, &2_u32.to_be_bytes())),
        (
            "tiny clusters",
            with(field::CLUSTER_BITS, &8_u32.to_be_bytes()),
        ),
        (
            "no room for subclusters",
            with(field::CLUSTER_BITS, &13_u32.to_be_bytes()),
        ),
        (
            "a shift out of range",
            with(field::CLUSTER_BITS, &64_u32.to_be_bytes()),
        ),
        ("encrypted", with(field::CRYPT_METHOD, &1_u32.to_be_bytes())),
        (
            "internal snapshots",
            with(field::SNAPSHOTS, &1_u32.to_be_bytes()),
        ),
        ("dirty", feature(0)),
        ("corrupt", feature(1)),
        ("a data file by feature", feature(2)),
        ("an unknown feature", feature(40)),
        ("a data file by extension", extension(0x4441_5441)),
        (
            "an L1 table beyond the end",
            with(field::L1_OFFSET, &(CLUSTER * 900).to_be_bytes()),
        ),
        (
            "an L1 table that wraps",
            with(field::L1_OFFSET, &(u64::MAX - CLUSTER + 1).to_be_bytes()),
        ),
        (
            "tables over the header",
            with(field::REFCOUNT_OFFSET, &0_u64.to_be_bytes()),
        ),
        (
            "a backing name beyond the end",
            with(field::BACKING_OFFSET, &u64::MAX.to_be_bytes()),
        ),
    ];
    for (what, image) in cases {
        assert!(head_of(&image).is_err(), "{what} was taken");
    }
}

#[test]
fn two_statements_of_the_format_are_refused() {
    // The second extension of the two would be believed by QEMU.
    let twice = with(120, &0xe279_2aca_u32.to_be_bytes());
    assert_eq!(
        head_of(&twice),
        Err(HeaderError::Inconsistent(
            "it states two formats of its backing file"
        ))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..5000), length: u64) {
        let _ = read_header(&bytes, length);
    }

    /// Few bytes changed, so that most of the header still makes sense.
    #[test]
    fn a_changed_header_is_read_without_harm(
        changes in proptest::collection::vec((0_usize..400, any::<u8>()), 1..6),
        length: u64,
    ) {
        let mut image = image();
        for (at, byte) in changes {
            image[at] = byte;
        }
        let _ = head_of(&image);
        let _ = read_header(&image, length);
    }

    #[test]
    fn every_size_and_name_round_trips(sectors in 1_u64..(1 << 34), name in "[a-z0-9./]{1,1023}") {
        let image = empty_overlay(sectors * 512, name.as_bytes(), DiskFormat::Qcow2).unwrap();
        let found = head_of(&image).unwrap();
        prop_assert_eq!(found.size, sectors * 512);
        prop_assert_eq!(found.backing, name.as_bytes());
        prop_assert_eq!(found.backing_format, b"qcow2".to_vec());
    }
}
