//! The file system itself: its size, its trees, and what can be done with it later.

use std::os::unix::fs::FileExt;

use cowslip_image::{Digest, ImportError, Limits, read_superblock};

use crate::support::{Bench, archive, assert_clean, tool};

// covers R61
#[test]
fn there_is_the_slack_that_was_asked_for() {
    for (content, free) in [(0, 0), (1 << 20, 5 << 20), (30 << 20, 64 << 20)] {
        let mut bench = Bench::new();
        bench.sizing.free_bytes = free;
        bench.sizing.free_inodes = 20_000;
        let bytes = archive().file("f", &vec![1; content]).finish();
        let imported = bench.tar(&bytes[..]).unwrap();
        let superblock = read_superblock(&bench.image()).unwrap();
        assert_eq!(superblock.size(), imported.size);
        assert_eq!(superblock.used(), imported.used);
        assert!(superblock.free_blocks * superblock.block_size >= free);
        assert!(superblock.free_inodes >= 20_000);
        // The smallest has as much room as its journal takes.
        let most = free.max(16 << 20) + (4 << 20);
        assert!(imported.size - imported.used < most, "{imported:?}");
    }
}

// covers R61: a hole counts, for the guest may fill it
#[test]
fn the_apparent_size_of_sparse_files_counts() {
    let source = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(source.path().join("sparse")).unwrap();
    file.set_len(500 << 20).unwrap();
    file.write_all_at(b"end", (500 << 20) - 3).unwrap();
    let bench = Bench::new();
    let imported = bench.directory(source.path()).unwrap();
    assert!(imported.size - imported.used >= 499 << 20, "{imported:?}");
    use std::os::unix::fs::MetadataExt;
    assert!(bench.image().metadata().unwrap().blocks() * 512 < 8 << 20);

    let mut bench = Bench::new();
    bench.limits = Limits {
        max_bytes: 100 << 20,
        ..Limits::default()
    };
    match bench.directory(source.path()) {
        Err(ImportError::Limit { entry, .. }) => assert_eq!(entry, "sparse"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn deep_extent_trees_and_long_directories_are_sound() {
    let source = tempfile::tempdir().unwrap();
    let holes = std::fs::File::create(source.path().join("holes")).unwrap();
    for block in 0..2000u64 {
        holes.write_all_at(&[1; 100], block * 8192).unwrap();
    }
    let many = source.path().join("many");
    std::fs::create_dir(&many).unwrap();
    for index in 0..20_000 {
        let name = format!("{index:05}-{}", "n".repeat(index % 100));
        std::fs::File::create(many.join(name)).unwrap();
    }
    let bench = Bench::new();
    let imported = bench.directory(source.path()).unwrap();
    assert_eq!(imported.entries, 20_002);
    let expected = std::fs::read(source.path().join("holes")).unwrap();
    assert!(bench.read("/holes") == expected);
    let tree = bench.debugfs("ex /holes");
    assert!(tree.contains(" 2/ 2"), "{}", &tree[..400]);
    assert_eq!(bench.debugfs("ls -p /many").matches("-n").count(), 19_800);
}

#[test]
fn content_over_several_groups_is_sound() {
    // 150 MiB in one file: past the first group and the copy of the superblock in the second.
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("large");
    let content: Vec<u8> = (0..150u32 << 18)
        .flat_map(|n| (n | 1).to_le_bytes())
        .collect();
    std::fs::write(&path, &content).unwrap();
    let bench = Bench::new();
    bench.directory(source.path()).unwrap();
    assert!(bench.read("/large") == content);
}

#[test]
fn more_inodes_than_one_group_has() {
    let mut builder = archive();
    for index in 0..40_000 {
        builder = builder.raw(b'6', &format!("{}/{index}", index % 97), "", b"", |_| {});
    }
    let bench = Bench::new();
    let imported = bench.tar(&builder.finish()[..]).unwrap();
    assert_eq!(imported.entries, 40_097);
}

// A disk is larger than its template; the guest grows the file system into it.
#[test]
fn it_can_be_grown_to_tens_of_gigabytes() {
    let bench = Bench::new();
    bench
        .tar(&archive().file("f", b"kept").finish()[..])
        .unwrap();
    let image = bench.image();
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    file.set_len(40 << 30).unwrap();
    let output = tool("resize2fs", &[image.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(read_superblock(&image).unwrap().size(), 40 << 30);
    assert_clean(&image);
    assert_eq!(bench.read("/f"), b"kept");
}

#[test]
fn every_run_of_the_same_version_gives_these_bytes() {
    // Changes with the layout that mke2fs or this crate chooses: then say so in the changelog, since
    // templates imported before and after are two templates.
    let bytes = archive()
        .directory("etc")
        .file("etc/hostname", b"cowslip\n")
        .finish();
    let digest: Digest = Bench::new().tar(&bytes[..]).unwrap().digest;
    let again: Digest = Bench::new().tar(&bytes[..]).unwrap().digest;
    assert_eq!(digest, again);
}
