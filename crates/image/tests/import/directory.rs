//! Directories of the host: what is left alone, and what notices a change.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use cowslip_image::{ImportError, Phase, Progress};

use crate::support::{Bench, archive, gnu_tar};

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("usr/bin")).unwrap();
    std::fs::write(at("usr/bin/tool"), vec![7; 100_000]).unwrap();
    std::fs::set_permissions(at("usr/bin/tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::hard_link(at("usr/bin/tool"), at("usr/bin/alias")).unwrap();
    std::fs::write(at("empty"), b"").unwrap();
    symlink("/usr/bin", at("bin")).unwrap();
    symlink("/", at("root")).unwrap();
    dir
}

// covers R59, R60
#[test]
fn links_are_copied_and_never_followed() {
    let source = tree();
    let bench = Bench::new();
    let imported = bench.directory(source.path()).unwrap();
    assert_eq!(imported.entries, 7);
    assert!(imported.skipped.is_empty());
    assert!(
        bench
            .debugfs("stat /bin")
            .contains("Fast link dest: \"/usr/bin\"")
    );
    assert!(bench.debugfs("stat /root").contains("Type: symlink"));
    let tool = bench.debugfs("stat /usr/bin/tool");
    assert!(
        tool.contains("04755") && tool.contains("Links: 2"),
        "{tool}"
    );
    assert_eq!(bench.read("/usr/bin/alias"), vec![7; 100_000]);
}

// "Two imports of the same image produce one template"
#[test]
fn a_directory_and_its_archive_give_the_same_image() {
    let source = tree();
    let twice = [(); 2].map(|()| Bench::new().directory(source.path()).unwrap().digest);
    assert_eq!(twice[0], twice[1]);
    let bytes = gnu_tar(source.path(), &["--format=posix", "--numeric-owner"]);
    assert_eq!(Bench::new().tar(&bytes[..]).unwrap().digest, twice[0]);
}

#[test]
fn one_static_binary_is_enough() {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("init"), b"\x7fELF").unwrap();
    let bench = Bench::new();
    bench.directory(source.path()).unwrap();
    assert_eq!(bench.read("/init"), b"\x7fELF");
}

#[test]
fn sockets_are_left_out_and_named() {
    let source = tree();
    let _listener = UnixListener::bind(source.path().join("usr/socket")).unwrap();
    let bench = Bench::new();
    let skipped = bench.directory(source.path()).unwrap().skipped;
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].entry, "usr/socket");
    assert!(!bench.debugfs("ls /usr").contains("socket"));
}

// covers R57
#[test]
fn a_hostile_name_is_refused_and_named() {
    let source = tree();
    std::fs::write(source.path().join("usr/a\nb"), b"").unwrap();
    let error = Bench::new()
        .directory(source.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("usr/a\\nb") && error.contains("control character"),
        "{error}"
    );
}

#[test]
fn sources_that_are_none() {
    let empty = tempfile::tempdir().unwrap();
    let error = Bench::new().directory(empty.path()).unwrap_err();
    assert!(matches!(error, ImportError::Empty), "{error}");
    for path in ["missing", "file"] {
        let path = empty.path().join(path);
        let error = Bench::new().directory(&path).unwrap_err();
        assert!(matches!(error, ImportError::ReadSource { .. }), "{error}");
        std::fs::write(empty.path().join("file"), b"").unwrap();
    }
}

#[test]
fn what_is_at_the_output_stays() {
    let bench = Bench::new();
    let source = tree();
    bench.directory(source.path()).unwrap();
    let before = std::fs::read(bench.image()).unwrap();
    let progress = cowslip_image::NoProgress;
    let job = cowslip_image::Job {
        work_dir: &bench.path("work"),
        output: &bench.image(),
        label: "",
        limits: bench.limits,
        sizing: bench.sizing,
        owners: cowslip_image::Owners::Keep,
        progress: &progress,
        cancel: &bench.cancel,
    };
    let again = cowslip_image::import_tar(&archive().file("a", b"").finish()[..], &job);
    assert!(
        matches!(again, Err(ImportError::OutputExists(_))),
        "{again:?}"
    );
    assert!(std::fs::read(bench.image()).unwrap() == before);
}

/// Does something to the source once it has been walked, before it is read.
struct Meddle<F: Fn()>(F);

impl<F: Fn()> Progress for Meddle<F> {
    fn phase(&self, phase: Phase, _: Option<u64>) {
        if phase == Phase::Writing {
            (self.0)();
        }
    }

    fn advance(&self, _: u64, _: u64) {}
}

#[test]
fn a_source_that_changes_is_noticed() {
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 6] = [
        ("usr/bin/alias", |root| {
            std::fs::write(root.join("usr/bin/tool"), vec![8; 100_000]).unwrap();
        }),
        ("empty", |root| {
            std::fs::write(root.join("empty"), b"grown").unwrap()
        }),
        ("empty", |root| {
            std::fs::remove_file(root.join("empty")).unwrap();
            symlink("/etc/passwd", root.join("empty")).unwrap();
        }),
        ("usr/bin", |root| {
            std::fs::rename(root.join("usr/bin"), root.join("usr/sbin")).unwrap();
            symlink("/usr/bin", root.join("usr/bin")).unwrap();
        }),
        ("usr", |root| {
            std::fs::write(root.join("usr/new"), b"").unwrap()
        }),
        (".", |root| std::fs::remove_file(root.join("bin")).unwrap()),
    ];
    for (expected, change) in changes {
        let source = tree();
        let meddle = Meddle(|| change(source.path()));
        match Bench::new().directory_watched(source.path(), &meddle) {
            Err(ImportError::Changed { path }) => assert!(path.starts_with(expected), "{path}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
