//! Archives: what is carried, what is refused, and that the same gives the same.

use std::io::Write;

use cowslip_image::{ImportError, Refusal};

use crate::support::{Archive, Bench, archive, gnu_tar};

fn refusal(archive: Archive) -> (String, Refusal) {
    match Bench::new().tar(&archive.finish()[..]) {
        Err(ImportError::Refused { entry, why }) => (entry, why),
        other => panic!("{other:?}"),
    }
}

// covers R59, R60
#[test]
fn all_that_an_inode_has_survives() {
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let bytes = archive()
        .directory("./")
        .raw(b'5', "tmp/", "", b"", |h| h.set_mode(0o1777))
        .raw(b'0', "su", "", b"setuid", |h| {
            h.set_mode(0o4755);
            h.set_uid(70_000);
            h.set_gid(80_000);
            h.set_mtime(1_234_567_890);
        })
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("ping", b"ping")
        .pax(&[
            ("SCHILY.xattr.user.large", &[b'v'; 2000]),
            ("SCHILY.xattr.user.a", b"1"),
            ("mtime", b"-1.25"),
        ])
        .file("noted", b"")
        .symlink("sh", "/bin/dash")
        .symlink("far", &"x/".repeat(45))
        .hard_link("su2", "su")
        .raw(b'6', "pipe", "", b"", |_| {})
        .raw(b'3', "null", "", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .raw(b'4', "disk", "", b"", |h| {
            h.set_device_major(259).unwrap();
            h.set_device_minor(70_000).unwrap();
        })
        .finish();
    let bench = Bench::new();
    let imported = bench.tar(&bytes[..]).unwrap();
    assert!(imported.skipped.is_empty(), "{:?}", imported.skipped);
    assert_eq!(imported.entries, 10);
    let has = |path: &str, parts: &[&str]| {
        let stat = bench.debugfs(&format!("stat {path}"));
        for part in parts {
            assert!(stat.contains(part), "{path} lacks {part:?}:\n{stat}");
        }
    };
    has("/tmp", &["Type: directory", "01777"]);
    let su = [
        "Type: regular",
        "04755",
        "User: 70000",
        "Group: 80000",
        "Links: 2",
    ];
    has("/su", &su);
    has("/su2", &su);
    has("/su", &["mtime: 0x499602d2:00000000"]);
    has("/ping", &["security.capability (20)"]);
    has("/noted", &["user.a (1) = \"1\"", "user.large (2000)"]);
    // -1.25 is 0.75 s after -2, with the epoch bits of a time before 1970.
    has("/noted", &["mtime: 0xfffffffe:b2d05e00"]);
    has("/sh", &["Type: symlink", "Fast link dest: \"/bin/dash\""]);
    has("/far", &["Type: symlink", "Size: 90"]);
    has("/pipe", &["Type: FIFO"]);
    has(
        "/null",
        &["Type: character", "Device major/minor number: 01:03"],
    );
    has("/disk", &["Type: block", "259:70000"]);
    assert_eq!(bench.read("/su2"), b"setuid");
}

// covers R57, R59, R63
#[test]
fn an_archive_cannot_reach_outside() {
    use Refusal::*;
    let cases = [
        (archive().file("../evil", b""), ParentComponent),
        (archive().file("a/../../evil", b""), ParentComponent),
        (archive().file("/etc/evil", b""), Absolute),
        (archive().file("a\nb", b""), ControlCharacter),
        (
            archive().symlink("out", "/tmp").file("out/evil", b""),
            ThroughSymlink,
        ),
        (
            archive().symlink("out", "..").directory("out/evil/"),
            ThroughSymlink,
        ),
        (
            archive().hard_link("evil", "../../etc/passwd"),
            ParentComponent,
        ),
        (archive().hard_link("evil", "/etc/passwd"), Absolute),
        (
            archive()
                .symlink("out", "/etc")
                .hard_link("evil", "out/passwd"),
            MissingLinkTarget,
        ),
        (
            archive().directory("d").hard_link("evil", "d"),
            LinkToDirectory,
        ),
        (
            archive().file("f", b"").file("f/evil", b""),
            ThroughNonDirectory,
        ),
        (
            archive().file("evil", b"").symlink("evil2", ""),
            BadLinkTarget,
        ),
        (
            archive().file("./", b"").symlink(".", "/etc"),
            RootNotDirectory,
        ),
        (archive().file("lost+found", b"evil"), LostAndFound),
    ];
    for (archive, expected) in cases {
        let (entry, why) = refusal(archive);
        assert_eq!(why, expected, "{entry}");
        assert!(!entry.contains('\n'), "{entry:?}");
    }
    let long = archive().pax(&[("path", &[b'n'; 300])]).file("x", b"");
    assert_eq!(refusal(long).1, NameTooLong);
}

#[test]
fn odd_but_harmless_names_are_carried() {
    let names = [
        "-rf",
        "a b",
        "\"",
        "'; id",
        "<12>",
        "caf\u{e9}",
        "...",
        "%s",
        "$(id)",
        "a\\b",
    ];
    let bytes = names
        .iter()
        .fold(archive(), |a, name| a.file(name, name.as_bytes()));
    let bench = Bench::new();
    assert_eq!(bench.tar(&bytes.finish()[..]).unwrap().entries, 10);
    let listing = bench.debugfs("ls -l /");
    for name in names {
        // As debugfs shows them.
        let shown = name.replace('\\', "\\x5c").replace('\u{e9}', "\\xc3\\xa9");
        assert!(listing.contains(&shown), "{name} is not in {listing}");
    }
}

#[test]
fn the_last_of_several_entries_wins() {
    let bytes = archive()
        .file("a", b"first")
        .file("b", b"kept by its other name")
        .hard_link("c", "b")
        .directory("d")
        .file("d/gone", b"")
        .symlink("b", "a")
        .file("a", b"second")
        .file("d", b"a file now")
        .finish();
    let bench = Bench::new();
    assert_eq!(bench.tar(&bytes[..]).unwrap().entries, 4);
    assert_eq!(bench.read("/a"), b"second");
    assert_eq!(bench.read("/c"), b"kept by its other name");
    assert_eq!(bench.read("/d"), b"a file now");
    assert!(bench.debugfs("stat /b").contains("Type: symlink"));
}

// "The same input gives the same bytes"
#[test]
fn compression_order_and_time_do_not_change_the_image() {
    let ordered = archive()
        .directory("d")
        .file("d/a", &[b'a'; 9000])
        .file("e", b"e")
        .finish();
    let shuffled = archive()
        .file("e", b"e")
        .file("d/a", &[b'a'; 9000])
        .directory("d")
        .finish();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&ordered).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&ordered[..], 3).unwrap();
    let digests: Vec<_> = [&ordered, &shuffled, &gzip, &zstd]
        .map(|bytes| Bench::new().tar(&bytes[..]).unwrap().digest)
        .into();
    assert!(digests.iter().all(|d| *d == digests[0]), "{digests:?}");
    let other = archive().directory("d").file("e", b"f").finish();
    assert_ne!(Bench::new().tar(&other[..]).unwrap().digest, digests[0]);
}

// covers R60: sparse files, in each form in which GNU tar writes them
#[test]
fn sparse_files_are_the_same_in_every_format() {
    let source = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(source.path().join("sparse")).unwrap();
    use std::os::unix::fs::FileExt;
    for piece in 0..40 {
        file.write_all_at(b"data", piece * 150_000 + 1000).unwrap();
    }
    file.set_len(8_000_001).unwrap();
    file.sync_all().unwrap();
    let content = std::fs::read(source.path().join("sparse")).unwrap();
    let mtime = "--mtime=@1700000000";
    let formats: [&[&str]; 6] = [
        &[mtime, "--format=gnu"],
        &[mtime, "--format=gnu", "-S"],
        &[mtime, "--format=posix", "-S", "--sparse-version=0.0"],
        &[mtime, "--format=posix", "-S", "--sparse-version=0.1"],
        &[mtime, "--format=posix", "-S", "--sparse-version=1.0"],
        &[mtime, "--format=ustar"],
    ];
    let mut digests = Vec::new();
    for format in formats {
        let bench = Bench::new();
        let bytes = gnu_tar(source.path(), format);
        let sparse = format.contains(&"-S");
        assert_eq!(bytes.len() < 1_000_000, sparse, "{format:?}");
        digests.push(bench.tar(&bytes[..]).unwrap().digest);
        assert_eq!(bench.read("/sparse"), content, "{format:?}");
        // 40 pieces of one block or two each, not 8 MB.
        let stat = bench.debugfs("stat /sparse");
        assert!(
            stat.contains("Size: 8000001") && stat.contains("Blockcount: 3"),
            "{stat}"
        );
    }
    assert!(digests.iter().all(|d| *d == digests[0]), "{digests:?}");
}

#[test]
fn attributes_that_ext4_cannot_hold_are_named() {
    let bytes = archive()
        .pax(&[
            ("SCHILY.xattr.user.huge", &[b'x'; 5000]),
            ("SCHILY.xattr.user.ok", b"1"),
        ])
        .file("f", b"")
        .finish();
    let bench = Bench::new();
    let skipped = bench.tar(&bytes[..]).unwrap().skipped;
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].entry, "f");
    assert!(skipped[0].why.contains("user.huge"), "{}", skipped[0].why);
    assert!(bench.debugfs("stat /f").contains("user.ok"));
}

#[test]
fn an_archive_of_nothing_is_refused() {
    for bytes in [archive().finish(), archive().directory("./").finish()] {
        let error = Bench::new().tar(&bytes[..]).unwrap_err();
        assert!(matches!(error, ImportError::Empty), "{error}");
    }
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let bench = Bench::new();
    bench.cancel.cancel();
    let error = bench
        .tar(&archive().file("a", b"").finish()[..])
        .unwrap_err();
    assert!(matches!(error, ImportError::Cancelled), "{error}");
}
