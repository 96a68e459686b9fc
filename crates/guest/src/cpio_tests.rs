//! The archives are read back by a reader of our own and by the system's `cpio`.

use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// (path, mode, device, data) of each entry.
type Read = Vec<(String, u32, (u32, u32), Vec<u8>)>;

/// A strict reader: anything the format does not say is a panic.
fn read(mut bytes: &[u8]) -> Read {
    let whole = bytes.len();
    let mut entries = Vec::new();
    let mut inodes = std::collections::BTreeSet::new();
    loop {
        let (header, rest) = bytes.split_at(110);
        assert_eq!(&header[..6], b"070701");
        let field = |index: usize| {
            let digits = &header[6 + index * 8..14 + index * 8];
            u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        let (name_len, data_len) = (field(11) as usize, field(6) as usize);
        let name = std::str::from_utf8(&rest[..name_len - 1])
            .unwrap()
            .to_owned();
        assert_eq!(rest[name_len - 1], 0);
        let data_at = name_len + padding(110 + name_len);
        let data = rest[data_at..data_at + data_len].to_vec();
        bytes = &rest[data_at + data_len + padding(data_len)..];
        assert_eq!((whole - bytes.len()) % 4, 0);
        if name == "TRAILER!!!" {
            assert!(bytes.is_empty());
            return entries;
        }
        assert!(
            inodes.insert(field(0)),
            "two entries with one inode would be hard links"
        );
        assert_eq!([field(2), field(3), field(5)], [0, 0, 0], "owner and time");
        entries.push((name, field(1), (field(9), field(10)), data));
    }
}

fn written(archive: &Archive<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.write_to(&mut bytes).unwrap();
    bytes
}

#[test]
fn parents_come_first_and_once() {
    let mut archive = Archive::new();
    archive.file("a/b/c", 0o644, b"x".as_slice()).unwrap();
    archive.file("a-z", 0o600, b"".as_slice()).unwrap();
    archive.directory("a/b").unwrap();
    archive.char_device("dev/console", 0o600, 5, 1).unwrap();
    archive.symlink("a/link", "/b").unwrap();
    let names: Vec<_> = read(&written(&archive))
        .into_iter()
        .map(|(name, mode, dev, _)| (name, mode, dev))
        .collect();
    let expected = [
        ("a", 0o040_755, (0, 0)),
        ("a-z", 0o100_600, (0, 0)),
        ("a/b", 0o040_755, (0, 0)),
        ("a/b/c", 0o100_644, (0, 0)),
        ("a/link", 0o120_777, (0, 0)),
        ("dev", 0o040_755, (0, 0)),
        ("dev/console", 0o020_600, (5, 1)),
    ];
    assert_eq!(
        names,
        expected.map(|(name, mode, dev)| (name.to_owned(), mode, dev))
    );
}

#[test]
fn an_empty_archive_is_a_trailer() {
    assert_eq!(written(&Archive::new()).len(), 124);
    assert!(read(&written(&Archive::new())).is_empty());
}

#[test]
fn hostile_paths_are_refused() {
    let long = "a".repeat(MAX_PATH);
    for path in [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "a/../b",
        "..",
        "a\0b",
        "TRAILER!!!",
        &long,
    ] {
        let added = Archive::new().file(path, 0o644, b"".as_slice());
        assert!(matches!(added, Err(CpioError::Path { .. })), "{path:?}");
    }
}

#[test]
fn one_path_is_one_entry() {
    let mut archive = Archive::new();
    archive.file("a", 0o644, b"".as_slice()).unwrap();
    for added in [
        archive.clone().file("a", 0o644, b"".as_slice()),
        archive.clone().directory("a"),
        archive.clone().file("a/b", 0o644, b"".as_slice()),
    ] {
        assert!(matches!(added, Err(CpioError::Duplicate(path)) if path == "a"));
    }
}

#[test]
fn the_systems_cpio_reads_it() {
    let mut archive = Archive::new();
    archive
        .file("modules/virtio.ko", 0o644, vec![7_u8; 4097])
        .unwrap();
    archive.file("init", 0o755, b"#!".as_slice()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive");
    std::fs::write(&path, written(&archive)).unwrap();
    let listed = Command::new("cpio")
        .args(["-it", "--quiet"])
        .stdin(std::fs::File::open(&path).unwrap())
        .stderr(Stdio::piped())
        .output()
        .expect("cpio is installed (scripts/setup)");
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    assert_eq!(
        String::from_utf8(listed.stdout).unwrap(),
        "init\nmodules\nmodules/virtio.ko\n"
    );
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(
        files in proptest::collection::btree_map(
            "[a-d]{1,3}(/[a-d.-]{1,3}x){0,3}",
            (0_u32..0o10000, proptest::collection::vec(any::<u8>(), 0..40)),
            0..12,
        ),
    ) {
        let mut archive = Archive::new();
        let mut kept = std::collections::BTreeMap::new();
        for (path, (mode, data)) in &files {
            // A file whose name another needs as a directory, or the other way round, is refused.
            if archive.file(path, *mode, data.as_slice()).is_ok() {
                kept.insert(path.clone(), (S_IFREG | mode, data.clone()));
            }
        }
        let bytes = written(&archive);
        let read: std::collections::BTreeMap<_, _> = read(&bytes)
            .into_iter()
            .filter(|(_, mode, ..)| mode & S_IFDIR == 0)
            .map(|(name, mode, _, data)| (name, (mode, data)))
            .collect();
        prop_assert_eq!(read, kept);
        prop_assert_eq!(bytes, written(&archive));
    }
}
