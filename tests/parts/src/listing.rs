//! What is in a directory, in words that can be compared with another's.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Of each name below a directory: type, mode, owner, number of links, modification time, and what there is of size,
/// content, target, device and attributes (`attribute NAME (SIZE)` and `value NAME HEX`).
pub type Listing = BTreeMap<String, Vec<String>>;

/// All names below a directory, and the directory itself as "".
///
/// # Panics
/// When one cannot be read.
#[must_use]
pub fn list(root: &Path) -> Listing {
    let mut listing = Listing::from([(String::new(), facts(root))]);
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap();
            let name = name.to_str().map_or_else(
                || name.as_os_str().as_bytes().escape_ascii().to_string(),
                str::to_owned,
            );
            listing.insert(name, facts(&path));
            if entry.file_type().unwrap().is_dir() {
                todo.push(path);
            }
        }
    }
    listing
}

fn facts(path: &Path) -> Vec<String> {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let word = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "FIFO",
        () if kind.is_char_device() => "character",
        () if kind.is_block_device() => "block",
        () if kind.is_socket() => "socket",
        () => "regular",
    };
    let mut facts = vec![
        format!("type {word}"),
        format!("mode {:04o}", meta.mode() & 0o7777),
        format!("owner {}:{}", meta.uid(), meta.gid()),
        format!("links {}", meta.nlink()),
        format!(
            "mtime {:#010x}:{:08x}",
            meta.mtime(),
            meta.mtime_nsec() << 2
        ),
    ];
    match word {
        "regular" => {
            facts.push(format!("size {}", meta.len()));
            facts.push(format!("content sha256:{}", content(path)));
        }
        "symlink" => {
            let target = std::fs::read_link(path).unwrap();
            facts.push(format!("target {}", target.display()));
        }
        "character" | "block" => {
            let device = meta.rdev();
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            facts.push(format!("device {major}:{minor}"));
        }
        _ => {}
    }
    facts.extend(attributes(path));
    facts
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).unwrap() {
            0 => return hex(&digest.finalize()),
            length => digest.update(&piece[..length]),
        }
    }
}

fn attributes(path: &Path) -> Vec<String> {
    let mut names = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length].split(|byte| *byte == 0);
    let mut found: Vec<String> = names
        .filter(|name| !name.is_empty())
        .flat_map(|name| {
            let name = OsStr::from_bytes(name);
            let mut value = vec![0; 65_536];
            let size = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            let name = name.display();
            [
                format!("attribute {name} ({size})"),
                format!("value {name} {}", hex(&value[..size])),
            ]
        })
        .collect();
    found.sort();
    found
}
