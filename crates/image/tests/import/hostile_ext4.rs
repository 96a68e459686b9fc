//! Images that no honest kernel writes: each is an error that names what is wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowslip_image::ExportError;

use crate::support::{Bench, tool};

/// A small image with something of everything; blocks of 1 KiB.
pub(crate) fn made(bench: &Bench, options: &[&str]) -> PathBuf {
    let source = bench.path("source");
    std::fs::create_dir_all(source.join("dir/inner")).unwrap();
    std::fs::write(source.join("dir/aa"), "content").unwrap();
    std::fs::write(source.join("dir/bb"), vec![7; 50_000]).unwrap();
    std::os::unix::fs::symlink("x/".repeat(100), source.join("slow")).unwrap();
    let many = source.join("many");
    std::fs::create_dir(&many).unwrap();
    for index in 0..200 {
        std::fs::write(many.join(format!("{index:030}")), "").unwrap();
    }
    let pieces = File::create(source.join("pieces")).unwrap();
    for piece in 0..20 {
        pieces.write_all_at(&[1; 1000], piece * 8192).unwrap();
    }
    for (name, length) in [("user.a", 10), ("user.b", 300)] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(source.join("dir/aa"), name, &vec![9; length], flags).unwrap();
    }
    let path = bench.path("made");
    let mut arguments = vec!["-q", "-F", "-t", "ext4", "-b", "1024", "-N", "300"];
    arguments.extend(["-d", source.to_str().unwrap()]);
    arguments.extend(options);
    arguments.extend([path.to_str().unwrap(), "2M"]);
    let output = tool("mke2fs", &arguments);
    assert!(output.status.success(), "{options:?}: {output:?}");
    path
}

fn debugfs(image: &Path, request: &str) -> String {
    let output = tool("debugfs", &["-w", "-R", request, image.to_str().unwrap()]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where a file's first block is, in bytes.
fn block_of(image: &Path, name: &str) -> u64 {
    let blocks = debugfs(image, &format!("blocks {name}"));
    let first = blocks.split_whitespace().next().unwrap();
    first.parse::<u64>().unwrap() * 1024
}

/// Where a file's inode is, in bytes.
fn inode_of(image: &Path, name: &str) -> u64 {
    let text = debugfs(image, &format!("imap {name}"));
    let after = text.split("located at block ").nth(1).unwrap();
    let (block, offset) = after.trim().split_once(", offset 0x").unwrap();
    block.parse::<u64>().unwrap() * 1024 + u64::from_str_radix(offset, 16).unwrap()
}

fn number_of(image: &Path, name: &str) -> u32 {
    let text = debugfs(image, &format!("stat {name}"));
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn write(image: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn read(image: &Path, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    File::open(image)
        .unwrap()
        .read_exact_at(&mut bytes, at)
        .unwrap();
    bytes
}

/// Where the entry of a name is in a directory's first block, in bytes of the image.
fn entry_of(image: &Path, directory: &str, name: &str) -> u64 {
    let block = block_of(image, directory);
    let found = read(image, block)
        .windows(name.len())
        .position(|w| w == name.as_bytes());
    block + found.unwrap() as u64 - 8
}

/// The node of an extent tree: `entries` of `most`, and what follows.
fn node(entries: u16, most: u16, depth: u16, words: &[u32]) -> Vec<u8> {
    let header = [0xf30a, entries, most, depth, 0, 0];
    let header = header.iter().flat_map(|word: &u16| word.to_le_bytes());
    header
        .chain(words.iter().flat_map(|word| word.to_le_bytes()))
        .collect()
}

type Change = fn(&Path);
/// Where a byte is, in bytes of the image.
type Place = fn(&Path) -> u64;

/// What is done to an image without checksums, and what the error must say.
const HOSTILE: [(&str, Change, &str); 26] = [
    (
        "a name ..",
        |i| write(i, entry_of(i, "/dir", "aa") + 8, b".."),
        "\"dir\" (inode 12) is damaged: a name in it is empty",
    ),
    (
        "a name with a slash",
        |i| write(i, entry_of(i, "/dir", "aa") + 8, b"a/"),
        "contains a slash or NUL",
    ),
    (
        "a name with NUL",
        |i| write(i, entry_of(i, "/dir", "aa") + 8, b"a\0"),
        "contains a slash or NUL",
    ),
    (
        "a name without length",
        |i| write(i, entry_of(i, "/dir", "aa") + 6, &[0]),
        "a name in it is empty",
    ),
    (
        "a name beyond its entry",
        |i| write(i, entry_of(i, "/dir", "aa") + 6, &[255]),
        "longer than its entry",
    ),
    (
        "an entry beyond its block",
        |i| write(i, entry_of(i, "/dir", "aa") + 4, &[0, 4]),
        "an entry of it leaves its block",
    ),
    (
        "an entry without length",
        |i| write(i, entry_of(i, "/dir", "aa") + 4, &[0, 0]),
        "an entry of it leaves its block",
    ),
    (
        "a name twice",
        |i| write(i, entry_of(i, "/dir", "bb") + 8, b"aa"),
        "it has a name twice",
    ),
    (
        "an inode out of range",
        |i| write(i, entry_of(i, "/dir", "aa"), &[0xff; 4]),
        "leads to an inode that no file can have",
    ),
    (
        "the journal as a file",
        |i| write(i, entry_of(i, "/dir", "aa"), &[8, 0, 0, 0]),
        "leads to an inode that no file can have",
    ),
    (
        "the root in itself",
        |i| write(i, entry_of(i, "/dir", "aa"), &[2, 0, 0, 0]),
        "leads to an inode that no file can have",
    ),
    (
        "a directory in itself",
        |i| {
            let own = number_of(i, "/dir").to_le_bytes();
            write(i, entry_of(i, "/dir", "inner"), &own);
        },
        "\"dir/inner\" (inode 12) is damaged: it is a directory with two names",
    ),
    (
        "a directory whose parent is another",
        |i| write(i, block_of(i, "/dir/inner") + 12, &[11, 0, 0, 0]),
        "its own \".\" or \"..\" is missing or leads elsewhere",
    ),
    (
        "a directory with two names",
        |i| {
            let inner = number_of(i, "/dir/inner").to_le_bytes();
            write(i, entry_of(i, "/dir", "aa"), &inner);
        },
        "it is a directory with two names",
    ),
    (
        "a deleted file with a name",
        |i| write(i, inode_of(i, "/dir/aa") + 26, &[0, 0]),
        "it is deleted, but has a name",
    ),
    (
        "a file of no type",
        |i| write(i, inode_of(i, "/dir/aa"), &[0, 0]),
        "it is of no type",
    ),
    (
        "a tree of extents that is its own child",
        |i| {
            let block = u32::try_from(block_of(i, "/dir/bb") / 1024).unwrap();
            write(
                i,
                inode_of(i, "/dir/bb") + 40,
                &node(1, 4, 5, &[0, block, 0]),
            );
            write(i, u64::from(block) * 1024, &node(1, 84, 4, &[0, block, 0]));
        },
        "its extent tree has levels that do not match",
    ),
    (
        "a tree of extents without end",
        |i| write(i, inode_of(i, "/dir/bb") + 40, &node(1, 4, 6, &[0, 30, 0])),
        "its extent tree is too deep",
    ),
    (
        "extents that overlap",
        |i| {
            write(
                i,
                inode_of(i, "/dir/bb") + 40,
                &node(2, 4, 0, &[0, 9, 500, 8, 9, 600]),
            )
        },
        "extents overlap or go backwards",
    ),
    (
        "an extent out of range",
        |i| {
            write(
                i,
                inode_of(i, "/dir/bb") + 40,
                &node(1, 4, 0, &[0, 9, 2040]),
            )
        },
        "a block outside of the file system",
    ),
    (
        "more extents than there is room",
        |i| write(i, inode_of(i, "/dir/bb") + 40, &node(5, 5, 0, &[0, 9, 500])),
        "a block that is too full",
    ),
    (
        "an extent of nothing",
        |i| write(i, inode_of(i, "/dir/bb") + 40, &node(1, 4, 0, &[0, 0, 500])),
        "an impossible length",
    ),
    (
        "a directory of 2 GiB",
        |i| write(i, inode_of(i, "/dir/inner") + 4, &[0, 0, 0, 0x80]),
        "its list of names has a hole",
    ),
    (
        "a link that is too long",
        |i| write(i, inode_of(i, "/slow") + 4, &[0, 4]),
        "its target is empty or too long",
    ),
    (
        "fields beyond the inode",
        |i| write(i, inode_of(i, "/dir/aa") + 128, &[132, 0]),
        "its fields end outside of it",
    ),
    (
        "a value beyond its place",
        |i| {
            let at = inode_of(i, "/dir/aa") + 128;
            let room = read(i, at);
            let magic = room.windows(4).position(|w| w == [0, 0, 2, 0xea]).unwrap() as u64;
            write(i, at + magic + 4 + 2, &[0xff, 0xff]);
        },
        "the value of an extended attribute leaves its place",
    ),
];

// covers R57, R63
#[test]
fn what_no_kernel_writes_is_refused_and_named() {
    let bench = Bench::new();
    let clean = made(&bench, &["-O", "^metadata_csum"]);
    bench.export_of(&clean).unwrap();
    let image = bench.path("hostile");
    for (name, change, expected) in HOSTILE {
        std::fs::copy(&clean, &image).unwrap();
        change(&image);
        let error = match bench.export_of(&image) {
            Err(error) => error.to_string(),
            Ok((_, exported)) => panic!("{name}: {exported:?}"),
        };
        assert!(error.contains(expected), "{name}: {error}");
        assert!(!error.chars().any(char::is_control), "{name}: {error}");
    }
}

// What was there before a guest reserved the room is another's, and not to be seen.
#[test]
fn room_that_was_never_written_is_zeros() {
    let bench = Bench::new();
    let image = made(&bench, &["-O", "^metadata_csum"]);
    let has_content = || {
        let (bytes, _) = bench.export_of(&image).unwrap();
        bytes.windows(100).any(|window| window == [7; 100])
    };
    assert!(has_content());
    let block = u32::try_from(block_of(&image, "/dir/bb") / 1024).unwrap();
    let extent = node(1, 4, 0, &[0, 49 + 32768, block]);
    write(&image, inode_of(&image, "/dir/bb") + 40, &extent);
    assert!(!has_content());
}

#[test]
fn what_is_not_whole_or_not_known_is_told_apart() {
    let bench = Bench::new();
    let clean = made(&bench, &[]);
    bench.export_of(&clean).unwrap();
    let image = bench.path("changed");
    let changed = |change: &dyn Fn(&Path)| {
        std::fs::copy(&clean, &image).unwrap();
        change(&image);
        bench.export_of(&image).unwrap_err()
    };
    let requests = [
        "feature needs_recovery",
        "ssv state 0",
        "ssv last_orphan 15",
        "ssv state 3",
    ];
    for request in requests {
        let error = changed(&|i| drop(debugfs(i, request)));
        assert!(
            matches!(error, ExportError::Unclean { .. }),
            "{request}: {error}"
        );
        assert!(
            error.to_string().contains("not unmounted cleanly"),
            "{error}"
        );
    }
    let error = changed(&|i| {
        File::options()
            .write(true)
            .open(i)
            .unwrap()
            .set_len(1 << 20)
            .unwrap()
    });
    assert!(error.to_string().contains("it was cut"), "{error}");
    let error = changed(&|i| std::fs::write(i, [0; 4096]).unwrap());
    assert!(error.to_string().contains("magic"), "{error}");
    let error = changed(&|i| std::fs::remove_file(i).unwrap());
    assert!(matches!(error, ExportError::Read { .. }), "{error}");
    // A byte of each kind of metadata: its checksum is wrong then.
    let wrong: [(&str, Place); 5] = [
        ("its superblock has a wrong checksum", |_| 1024 + 200),
        ("\"dir/aa\" (inode", |i| inode_of(i, "/dir/aa") + 60),
        ("its list of names has a wrong checksum", |i| {
            entry_of(i, "/dir", "aa") + 8
        }),
        ("its extent tree has a wrong checksum", |i| {
            let text = debugfs(i, "ex /pieces");
            let first = text
                .lines()
                .nth(1)
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>();
            first[7].parse::<u64>().unwrap() * 1024 + 17
        }),
        ("the descriptor of its group has a wrong checksum", |_| {
            2048 + 12
        }),
    ];
    for (expected, place) in wrong {
        let error = changed(&|i| {
            let at = place(i);
            let byte = read(i, at)[0];
            write(i, at, &[byte ^ 1]);
        });
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    for (options, expected) in [
        (
            &["-O", "inline_data"][..],
            "its content is inside of the inode",
        ),
        (
            &["-O", "^extents,^metadata_csum,^64bit"],
            "mapped as in ext2 and ext3",
        ),
    ] {
        let bench = Bench::new();
        let error = bench.export_of(&made(&bench, options)).unwrap_err();
        assert!(
            matches!(error, ExportError::UnsupportedEntry { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(expected), "{error}");
    }
}
