//! Exports as a tar: what is imported again is the same image, and GNU tar sees the same files.

use cowslip_image::{ExportError, Limits};

use cowslip_test_parts::missing;

use crate::reference::{list_as_debugfs, list_image};
use crate::support::{Archive, Bench, archive, gnu_untar};

/// `r-x` for root, `rw-` for the user 1000, as the kernel shows it.
pub(crate) fn acl() -> Vec<u8> {
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (1u16, 5u16, u32::MAX),
        (2, 6, 1000),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// Everything that an image can hold; `Archive::pax` is for the member after it.
fn everything() -> Archive {
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(250));
    let holes = |pieces: usize| {
        let mut bytes = vec![0; 3_000_001];
        for piece in 0..pieces {
            bytes[piece * 70_000..piece * 70_000 + 3000].fill(7);
        }
        bytes
    };
    archive()
        .pax(&[("SCHILY.xattr.user.root", b"1"), ("mtime", b"77.000000001")])
        .raw(b'5', "./", "", b"", |h| h.set_mode(0o711))
        .raw(b'5', "tmp/", "", b"", |h| h.set_mode(0o1777))
        .raw(b'5', "empty/", "", b"", |h| h.set_mode(0o2750))
        .raw(b'0', "su", "", b"setuid", |h| {
            h.set_mode(0o4755);
            h.set_uid(70_000);
            h.set_gid(80_000);
        })
        .pax(&[("uid", b"4294967294"), ("gid", b"3000000")])
        .file("far-owner", b"")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("ping", b"ping")
        .pax(&[
            ("SCHILY.xattr.user.large", &[b'v'; 2000]),
            ("SCHILY.xattr.user.binary", b"\0\n=\xff"),
            ("SCHILY.xattr.trusted.t", b""),
            ("mtime", b"-1.25"),
        ])
        .file("noted", b"")
        .pax(&[
            ("SCHILY.xattr.system.posix_acl_access", &acl()),
            ("SCHILY.xattr.system.posix_acl_default", &acl()),
            ("mtime", b"15032385534.999999999"),
        ])
        .raw(b'5', "acl/", "", b"", |h| h.set_mode(0o574))
        .pax(&[("mtime", b"9000000000")])
        .symlink("sh", "/bin/dash")
        .symlink("far", &"x/".repeat(45))
        .pax(&[("linkpath", &b"y/".repeat(700))])
        .symlink("farther", "")
        .pax(&[("linkpath", b"caf\xe9")])
        .symlink("latin1", "")
        .hard_link("su2", "su")
        .raw(b'6', "pipe", "", b"", |_| {})
        .hard_link("pipe2", "pipe")
        .hard_link("sh2", "sh")
        .raw(b'3', "null", "", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .raw(b'4', "disk", "", b"", |h| {
            h.set_device_major(259).unwrap();
            h.set_device_minor(70_000).unwrap();
        })
        .raw(b'3', "whiteout", "", b"", |h| {
            h.set_device_major(0).unwrap();
            h.set_device_minor(0).unwrap();
        })
        .pax(&[("path", long.as_bytes())])
        .file("x", b"long name")
        .hard_link("a-link", "su")
        .pax(&[("path", b"caf\xe9 latin1")])
        .file("x", b"no UTF-8")
        .pax(&[("path", "caf\u{e9}/\u{1f980} \"quoted\"".as_bytes())])
        .file("x", b"crab")
        .pax(&[("path", &[b"b".repeat(90), b"\xff".repeat(90)].concat())])
        .file("x", b"long and no UTF-8")
        .file("-rf", b"")
        .file("holes", &holes(40))
        .file("hole-at-the-end", &holes(1))
        .file("only-a-hole", &[0; 200_000])
        .file("small-hole", &[&[0; 40_000][..], b"data"].concat())
        .file(
            "big",
            &(0..3_000_000u32)
                .map(|n| (n / 7 + 1).to_le_bytes()[0])
                .collect::<Vec<_>>(),
        )
}

// covers R60
#[test]
fn an_export_imported_again_is_the_same_image() {
    let bench = Bench::new();
    let imported = bench.tar(&everything().finish()[..]).unwrap();
    assert!(imported.skipped.is_empty(), "{:?}", imported.skipped);
    let (bytes, exported) = bench.export_of(&bench.image()).unwrap();
    assert_eq!(exported.entries, imported.entries);
    assert!(exported.skipped.is_empty(), "{:?}", exported.skipped);
    // A map for each of the three that are worth one.
    assert_eq!(
        bytes
            .windows(20)
            .filter(|w| w.starts_with(b"GNU.sparse.realsize="))
            .count(),
        3
    );
    let again = Bench::new();
    assert_eq!(again.tar(&bytes[..]).unwrap().digest, imported.digest);
    // "The same input gives the same bytes"
    assert!(again.exported() == bytes);
    assert!(bench.exported() == bytes);
}

// covers R60: what another program makes of the export is what was there
#[test]
fn gnu_tar_unpacks_what_the_image_holds() {
    if missing("tar", true) {
        return;
    }
    let bench = Bench::new();
    let imported = bench.tar(&everything().finish()[..]).unwrap();
    let root = bench.path("unpacked");
    gnu_untar(&bench.exported(), &root);
    // Of the same files the same image: owners, times, attributes, links, devices, the root itself.
    let again = Bench::new();
    let directory = again.directory(&root).unwrap();
    assert!(directory.skipped.is_empty(), "{:?}", directory.skipped);
    // What differs is easier to see in archives than in digests.
    let differs = std::iter::zip(again.exported().chunks(512), bench.exported().chunks(512))
        .find(|(a, b)| a != b)
        .map(|(a, b)| [a, b].map(|block| String::from_utf8_lossy(block).into_owned()));
    assert_eq!(differs, None);
    assert_eq!(directory.digest, imported.digest);
    // And file by file, as debugfs has it.
    let bench = Bench::new();
    let imported = bench.tar(&plain_names().finish()[..]).unwrap();
    let root = bench.path("unpacked");
    gnu_untar(&bench.exported(), &root);
    let expected = list_as_debugfs(&root);
    assert_eq!(expected.len() as u64, imported.entries);
    assert_eq!(list_image(&bench, expected.keys().cloned()), expected);
}

/// With names that debugfs can be asked for.
fn plain_names() -> Archive {
    archive()
        .directory("d/")
        .raw(b'0', "d/su", "", b"setuid", |h| {
            h.set_mode(0o4755);
            h.set_gid(70_000);
        })
        .pax(&[
            ("SCHILY.xattr.user.note", b"value"),
            ("mtime", b"1234567890.123456789"),
        ])
        .file("noted", &[b'n'; 10_000])
        .file("sparse", &[&[0; 500_000][..], b"end"].concat())
        .symlink("far", &"x/".repeat(45))
        .hard_link("su", "d/su")
        .raw(b'6', "pipe", "", b"", |_| {})
}

#[test]
fn members_are_listed_in_order_and_with_all_that_they_are() {
    let bench = Bench::new();
    bench.tar(&plain_names().finish()[..]).unwrap();
    let path = bench.path("export.tar");
    std::fs::write(&path, bench.exported()).unwrap();
    let output = std::process::Command::new("tar")
        .env("TZ", "UTC")
        .args(["--numeric-owner", "--full-time", "-tvf"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let listing = String::from_utf8(output.stdout).unwrap();
    let far = format!(
        "lrwxrwxrwx 0/0 0 2023-11-14 22:13:20 far -> {}",
        "x/".repeat(45)
    );
    let expected = [
        "drwxr-xr-x 0/0 0 1970-01-01 00:00:00 ./",
        "drwxr-xr-x 0/0 0 2023-11-14 22:13:20 d/",
        "-rwsr-xr-x 0/70000 6 2023-11-14 22:13:20 d/su",
        &far,
        "-rw-r--r-- 0/0 10000 2009-02-13 23:31:30.123456789 noted",
        "prw-r--r-- 0/0 0 2023-11-14 22:13:20 pipe",
        "-rw-r--r-- 0/0 500003 2023-11-14 22:13:20 sparse",
        "hrwsr-xr-x 0/70000 0 2023-11-14 22:13:20 su link to d/su",
    ];
    assert_eq!(listing.lines().map(words).collect::<Vec<_>>(), expected);
}

#[test]
fn bounds_hold_for_exports_too() {
    let names = (0..20).fold(archive(), |a, n| a.file(&format!("{n}"), &[1; 100]));
    let names = names.file("a/b/c/d/e", b"");
    let mut bench = Bench::new();
    bench
        .tar(
            &names
                .pax(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"1")])
                .file("x", b"")
                .finish()[..],
        )
        .unwrap();
    let limits = Limits::default();
    for (limits, what) in [
        (
            Limits {
                max_entries: 20,
                ..limits
            },
            "limit of 20 entries",
        ),
        (
            Limits {
                max_bytes: 1999,
                ..limits
            },
            "limit of 1999 bytes of content",
        ),
        (
            Limits {
                max_depth: 4,
                ..limits
            },
            "limit of 4 directories deep",
        ),
        (
            Limits {
                max_path_len: 8,
                ..limits
            },
            "limit of 8 bytes of path",
        ),
        (
            Limits {
                max_xattrs: 1,
                ..limits
            },
            "limit of 1 extended attributes",
        ),
        (
            Limits {
                max_xattr_bytes: 10,
                ..limits
            },
            "limit of 10 bytes of extended",
        ),
    ] {
        bench.limits = limits;
        let error = bench.export_of(&bench.image()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_cancelled_export_says_so() {
    let bench = Bench::new();
    bench.tar(&plain_names().finish()[..]).unwrap();
    bench.cancel.cancel();
    let error = bench.export_of(&bench.image()).unwrap_err();
    assert!(matches!(error, ExportError::Cancelled), "{error}");
}
