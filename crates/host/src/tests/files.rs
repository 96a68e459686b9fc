//! Directories and files.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::Presence;

use super::Bench;
use crate::{Content, Directory, DirectorySpec, File, FileSpec, Files, Host, HostError};

fn directory(path: PathBuf) -> DirectorySpec {
    DirectorySpec { path, mode: 0o700 }
}

fn file(path: PathBuf) -> FileSpec {
    FileSpec { path, mode: 0o600 }
}

#[test]
fn a_directory_goes_with_all_that_is_in_it_and_nothing_else() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("precious");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "kept").unwrap();
    let path = bench.place("dir");
    let held = bench
        .host
        .make_directory(bench.reserve::<Directory>(directory(path.clone())))
        .unwrap();
    let row = bench.row(held);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(bench.probe(&row), Presence::Present);
    std::fs::create_dir_all(path.join("a/b/c")).unwrap();
    std::fs::write(path.join("a/b/file"), "goes").unwrap();
    symlink(&outside, path.join("a/link")).unwrap();
    bench.release_twice(&row);
    assert!(!path.exists());
    assert_eq!(
        std::fs::read_to_string(outside.join("file")).unwrap(),
        "kept"
    );
}

#[test]
fn a_directory_that_took_the_place_of_ours_is_left_alone() {
    let bench = Bench::new();
    let path = bench.place("dir");
    let held = bench
        .host
        .make_directory(bench.reserve::<Directory>(directory(path.clone())))
        .unwrap();
    let row = bench.row(held);
    // Made before ours goes, so that it cannot get the same inode.
    let other = bench.place("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&other, &path).unwrap();
    bench.assert_foreign(&row);
    std::fs::remove_dir(&path).unwrap();
    let target = bench.dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    symlink(&target, &path).unwrap();
    bench.assert_foreign(&row);
    assert!(target.exists());
}

#[test]
fn after_a_boot_the_file_system_may_have_another_device_number() {
    let bench = Bench::new();
    let path = bench.place("dir");
    let held = bench
        .host
        .make_directory(bench.reserve::<Directory>(directory(path.clone())))
        .unwrap();
    let mut row = bench.row(held);
    let mut identity = row.identity.take().unwrap();
    identity["dev"] = (path.metadata().unwrap().dev() + 1).into();
    row.identity = Some(identity.clone());
    bench.assert_foreign(&row);
    row.boot_id = "an earlier one".to_owned();
    assert_eq!(bench.probe(&row), Presence::Present);
    identity["ino"] = (path.metadata().unwrap().ino() + 1).into();
    let mut other = row.clone();
    other.identity = Some(identity);
    bench.assert_foreign(&other);
    bench.release_twice(&row);
}

#[test]
fn what_was_never_recorded_is_found_by_its_path() {
    let bench = Bench::new();
    let row = bench.unrecorded::<Directory>(directory(bench.place("dir")));
    bench.release_twice(&row);
    std::fs::create_dir(bench.place("dir")).unwrap();
    assert_eq!(bench.probe(&row), Presence::Present);
    bench.release_twice(&row);

    let row = bench.unrecorded::<File>(file(bench.place("file")));
    std::fs::write(bench.place("file"), "half").unwrap();
    bench.release_twice(&row);
    // A parent that is no directory: there is nothing below it.
    std::fs::write(bench.place("plain"), "").unwrap();
    for row in [
        bench.unrecorded::<File>(file(bench.place("plain").join("x"))),
        bench.unrecorded::<Directory>(directory(bench.place("plain").join("x"))),
    ] {
        assert_eq!(bench.probe(&row), Presence::Absent);
    }
}

#[test]
fn nothing_is_made_over_what_is_there() {
    let bench = Bench::new();
    let path = bench.place("file");
    std::fs::write(&path, "precious").unwrap();
    let slot = bench.reserve::<File>(file(path.clone()));
    bench
        .host
        .make_file(slot, Content::Bytes(b"new"))
        .err()
        .unwrap();
    bench
        .host
        .make_directory(bench.reserve::<Directory>(directory(path.clone())))
        .err()
        .unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let missing = bench.place("none").join("file");
    bench
        .host
        .make_file(bench.reserve::<File>(file(missing)), Content::Bytes(b""))
        .err()
        .unwrap();
    // A link is not followed to be written through.
    let target = bench.dir.path().join("target");
    symlink(&target, bench.place("link")).unwrap();
    let slot = bench.reserve::<File>(file(bench.place("link")));
    bench
        .host
        .make_file(slot, Content::Bytes(b"new"))
        .err()
        .unwrap();
    assert!(!target.exists());
}

#[test]
fn files_have_their_bytes_and_holes() {
    let bench = Bench::new();
    let mut bytes = vec![0; 1 << 20];
    bytes[5] = 1;
    bytes.extend_from_slice(b"end");
    let path = bench.place("file");
    let held = bench
        .host
        .make_file(
            bench.reserve::<File>(file(path.clone())),
            Content::Bytes(&bytes),
        )
        .unwrap();
    let row = bench.row(held);
    assert!(std::fs::read(&path).unwrap() == bytes);
    let found = path.metadata().unwrap();
    assert!(
        found.blocks() * 512 <= 16 << 10,
        "{} bytes on the disk",
        found.blocks() * 512
    );
    assert_eq!(found.mode() & 0o777, 0o600);

    let copy = bench.place("copy");
    let content = Content::CloneOf {
        source: &path,
        size: 4 << 20,
    };
    let held = bench
        .host
        .make_file(bench.reserve::<File>(file(copy.clone())), content)
        .unwrap();
    let copied = bench.row(held);
    let found = std::fs::read(&copy).unwrap();
    assert!(found[..bytes.len()] == bytes && found[bytes.len()..].iter().all(|&byte| byte == 0));
    assert_eq!(found.len(), 4 << 20);
    assert!(bench.host.usage(&copy).unwrap() <= 16 << 10);
    bench.release_twice(&row);
    bench.release_twice(&copied);
}

#[test]
fn a_merged_file_is_whole_or_not_there() {
    // covers R24
    use std::io::Write;
    let bench = Bench::new();
    let path = bench.place("merged");
    let sources = [bench.place("below"), bench.place("above")];
    let make = |fill: &crate::file::Filler<'_>| {
        let content = Content::Merged {
            sources: &sources,
            size: 8192,
            fill,
        };
        bench
            .host
            .make_file(bench.reserve::<File>(file(path.clone())), content)
    };
    let broken = make(&|mut file| {
        file.write_all(&[1; 4096])?;
        Err(std::io::ErrorKind::StorageFull.into())
    });
    assert!(broken.err().unwrap().is_disk_full());
    assert!(!path.exists(), "half a file is left");
    let held = make(&|mut file| file.write_all(&[1; 4096])).unwrap();
    assert_eq!(path.metadata().unwrap().len(), 8192);
    bench.release_twice(&bench.row(held));
}

#[test]
fn a_file_that_took_the_place_of_ours_is_left_alone() {
    let bench = Bench::new();
    let path = bench.place("file");
    let held = bench
        .host
        .make_file(
            bench.reserve::<File>(file(path.clone())),
            Content::Bytes(b"ours"),
        )
        .unwrap();
    let row = bench.row(held);
    std::fs::write(bench.place("other"), "theirs").unwrap();
    std::fs::rename(bench.place("other"), &path).unwrap();
    bench.assert_foreign(&row);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
    std::fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    bench.assert_foreign(&row);
}

#[test]
fn nothing_outside_is_made_or_removed_whatever_a_row_says() {
    // covers R63
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    for path in [
        outside.clone(),
        bench
            .place("x")
            .join("..")
            .join("..")
            .join("..")
            .join("outside"),
        bench.layout.state().join("cowslip.db"),
        bench.layout.machines(),
        PathBuf::from("/"),
        PathBuf::from("relative"),
    ] {
        let refused =
            |error: HostError| assert!(matches!(error, HostError::Outside { .. }), "{error}");
        refused(
            bench
                .host
                .make_file(
                    bench.reserve::<File>(file(path.clone())),
                    Content::Bytes(b""),
                )
                .err()
                .unwrap(),
        );
        refused(
            bench
                .host
                .make_directory(bench.reserve::<Directory>(directory(path.clone())))
                .err()
                .unwrap(),
        );
        refused(
            bench
                .host
                .release(&bench.unrecorded::<File>(file(path.clone())))
                .unwrap_err(),
        );
        refused(
            bench
                .host
                .release(&bench.unrecorded::<Directory>(directory(path.clone())))
                .unwrap_err(),
        );
        refused(bench.host.remove_file(&path).unwrap_err());
    }
    assert!(!outside.exists() && bench.layout.state().join("cowslip.db").exists());
}

#[test]
fn a_publication_is_whole_or_absent() {
    let bench = Bench::new();
    let path = bench.place("record.json");
    bench.host.publish(&path, b"one").unwrap();
    bench.host.publish(&path, b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(
        std::fs::read_dir(bench.layout.machines()).unwrap().count(),
        1,
        "no temporary is left"
    );
    std::fs::create_dir(bench.place("taken")).unwrap();
    bench
        .host
        .publish(&bench.place("taken"), b"three")
        .unwrap_err();
    assert_eq!(
        std::fs::read_dir(bench.layout.machines()).unwrap().count(),
        2
    );
    bench.host.remove_file(&path).unwrap();
    bench.host.remove_file(&path).unwrap();
    assert!(bench.host.sync(&path).is_err());
}

#[test]
fn a_head_is_read_from_plain_files_only() {
    let bench = Bench::new();
    let path = bench.place("file");
    assert_eq!(bench.host.head(&path, 10).unwrap(), None);
    std::fs::write(&path, "0123456789").unwrap();
    for (limit, bytes) in [(0, &b""[..]), (4, b"0123"), (100, b"0123456789")] {
        let head = bench.host.head(&path, limit).unwrap().unwrap();
        assert_eq!((head.bytes.as_slice(), head.length), (bytes, 10));
    }
    symlink(&path, bench.place("link")).unwrap();
    let fifo = bench.place("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bench.place("socket")).unwrap();
    for foreign in [
        bench.place("link"),
        fifo,
        bench.place("socket"),
        bench.layout.machines(),
    ] {
        let error = bench.host.head(&foreign, 10).unwrap_err();
        assert!(matches!(error, HostError::Foreign { .. }), "{error}");
    }
}

#[test]
fn strays_are_what_no_row_names() {
    // covers R18
    let bench = Bench::new();
    let held = bench
        .host
        .make_directory(bench.reserve::<Directory>(directory(bench.place("ours"))))
        .unwrap();
    let row = bench.row(held);
    let layer = bench.layout.state().join("layers").join("lost.qcow2");
    std::fs::write(&layer, "").unwrap();
    std::fs::write(bench.layout.state().join("elsewhere"), "").unwrap();
    let strays = bench.host.strays(std::slice::from_ref(&row)).unwrap();
    let [stray] = strays.as_slice() else {
        panic!("{strays:?}")
    };
    assert!(stray.what.contains(&layer.display().to_string()) && stray.row.is_none());
    assert_eq!(bench.host.strays(&[]).unwrap().len(), 2);
}

#[test]
fn a_full_disk_leaves_no_part_of_a_file() {
    // covers R28
    if !super::mounts::may_mount() {
        return;
    }
    let bench = Bench::new();
    let small = super::mounts::SmallDisk::over(Path::new(&bench.layout.state().join("layers")));
    let path = small.path().join("layer.raw");
    let slot = bench.reserve::<File>(file(path.clone()));
    let error = bench
        .host
        .make_file(slot, Content::Bytes(&vec![7; 1 << 20]))
        .err()
        .unwrap();
    assert!(error.is_disk_full(), "{error}");
    assert!(!path.exists());
    let slot = bench.reserve::<File>(file(path));
    bench
        .host
        .make_file(slot, Content::Bytes(&vec![7; 64 << 10]))
        .unwrap()
        .settle();
}

#[test]
fn who_can_still_write_a_file_is_seen() {
    use std::os::fd::AsRawFd;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, [0; 4096]).unwrap();
    let read = || std::fs::File::open(&path).unwrap();
    assert!(!crate::head::is_written(&read()).unwrap());
    // Others may read it meanwhile.
    let _other = read();
    assert!(!crate::head::is_written(&read()).unwrap());
    let writer = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    assert!(crate::head::is_written(&read()).unwrap());
    // SAFETY: a mapping of its own, taken away below and not read or written between.
    let mapped = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = writer.as_raw_fd();
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            protection,
            libc::MAP_SHARED,
            fd,
            0,
        )
    };
    assert_ne!(mapped, libc::MAP_FAILED);
    drop(writer);
    assert!(crate::head::is_written(&read()).unwrap(), "it is mapped");
    // SAFETY: the mapping from above, which nobody uses.
    unsafe { libc::munmap(mapped, 4096) };
    assert!(!crate::head::is_written(&read()).unwrap());
}
