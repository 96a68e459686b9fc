use std::os::unix::fs::PermissionsExt;

use tar::{Builder, Header};

use super::*;
use crate::cp::Place;

struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Names are written raw: the library would refuse the hostile ones.
    fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o4755
        });
        header.set_size(content.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content.as_bytes()).unwrap();
        self
    }

    fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", "")
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, "")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn from() -> Remote {
    match Place::parse("web:/srv/top").unwrap() {
        Place::Remote(remote) => remote,
        other => panic!("{other:?}"),
    }
}

/// A directory with a victim beside the destination.
fn field() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("dst")).unwrap();
    std::fs::write(dir.path().join("victim"), "precious").unwrap();
    dir
}

fn run(dir: &tempfile::TempDir, archive: Archive, keep_links: bool) -> Result<Report, Failure> {
    let to = dir.path().join("dst");
    let result = unpack(
        &archive.bytes()[..],
        &from(),
        to.to_str().unwrap(),
        keep_links,
    );
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(
        names.len(),
        2,
        "something was made beside the destination: {names:?}"
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("victim")).unwrap(),
        "precious"
    );
    result
}

#[test]
fn a_tree_arrives_whole() {
    let dir = field();
    let archive = Archive::new()
        .dir("top")
        .file("top/file", "text")
        .dir("top/sub")
        .symlink("top/sub/link", "../file")
        .entry(EntryType::Link, "top/sub/hard", "top/file", "")
        .file("top/deep/without/parents", "x");
    assert!(run(&dir, archive, false).unwrap().skipped.is_empty());
    let top = dir.path().join("dst/top");
    assert_eq!(std::fs::read_to_string(top.join("file")).unwrap(), "text");
    assert_eq!(
        std::fs::read_to_string(top.join("sub/link")).unwrap(),
        "text"
    );
    assert_eq!(
        std::fs::read_to_string(top.join("sub/hard")).unwrap(),
        "text"
    );
    assert_eq!(
        std::fs::read_to_string(top.join("deep/without/parents")).unwrap(),
        "x"
    );
    // covers R60's other side: nobody gains rights by a copy
    let mode = std::fs::metadata(top.join("file"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7000, 0, "{mode:o}");
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["top/../../victim", "/victim", "../victim", "other/file"] {
        let dir = field();
        let error = run(&dir, Archive::new().dir("top").file(name, "bad"), true).unwrap_err();
        assert!(
            error.to_string().contains("archive has an entry"),
            "{name}: {error}"
        );
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    for target in ["../..", "/", "sub"] {
        let dir = field();
        let archive = Archive::new()
            .dir("top")
            .dir("top/sub")
            .symlink("top/link", target)
            .file("top/link/victim", "bad");
        run(&dir, archive, true).unwrap_err();
    }
    // A link in the place of a file is replaced, not written through.
    let dir = field();
    let archive = Archive::new()
        .dir("top")
        .symlink("top/file", "../../victim")
        .file("top/file", "mine");
    run(&dir, archive, true).unwrap();
    let made = dir.path().join("dst/top/file");
    assert!(std::fs::symlink_metadata(&made).unwrap().is_file());
    assert_eq!(std::fs::read_to_string(made).unwrap(), "mine");
}

#[test]
fn hard_links_stay_inside() {
    for target in ["../victim", "/victim", "top/../../victim", "victim"] {
        let dir = field();
        let archive = Archive::new()
            .dir("top")
            .entry(EntryType::Link, "top/link", target, "");
        run(&dir, archive, true).unwrap_err();
    }
}

#[test]
fn links_out_and_devices_are_left_out_and_named() {
    let dir = field();
    let archive = Archive::new()
        .dir("top")
        .symlink("top/absolute", "/etc/passwd")
        .symlink("top/up", "../x")
        .symlink("top/fine", "./sub/../file")
        .entry(EntryType::Char, "top/null", "", "")
        .entry(EntryType::Fifo, "top/pipe", "", "");
    let skipped = run(&dir, archive, false).unwrap().skipped;
    assert_eq!(skipped.len(), 4, "{skipped:?}");
    assert!(
        skipped[0].contains("absolute") && skipped[2].contains("device"),
        "{skipped:?}"
    );
    assert!(std::fs::symlink_metadata(dir.path().join("dst/top/fine")).is_ok());
    assert!(std::fs::symlink_metadata(dir.path().join("dst/top/absolute")).is_err());
}

#[test]
fn a_cut_archive_leaves_no_part_of_a_file() {
    let dir = field();
    let whole = Archive::new()
        .dir("top")
        .file("top/file", &"x".repeat(10_000))
        .bytes();
    let to = dir.path().join("dst");
    unpack(&whole[..4096], &from(), to.to_str().unwrap(), false).unwrap_err();
    assert!(!to.join("top/file").exists());
    unpack(&b"no tar at all"[..], &from(), to.to_str().unwrap(), false).unwrap_err();
}

#[test]
fn one_file_lands_under_the_name_given() {
    let dir = field();
    let to = dir.path().join("dst/new");
    let archive = Archive::new().file("top", "text").bytes();
    unpack(&archive[..], &from(), to.to_str().unwrap(), false).unwrap();
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "text");
    let error = unpack(
        &Archive::new().symlink("top", "/etc/passwd").bytes()[..],
        &from(),
        to.to_str().unwrap(),
        false,
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("symbolic link to \"/etc/passwd\""),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "text");
}
