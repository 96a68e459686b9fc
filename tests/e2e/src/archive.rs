//! Archives that tests import: small root file systems, and hostile ones.

use std::path::Path;
use std::process::Command;

use tar::{Builder, EntryType, Header};

/// A static program with a shell and the usual tools in it.
const BUSYBOX: &str = "/usr/bin/busybox";

/// A tar archive in memory. Names go in as they are: tests need bad ones.
pub struct Tar(Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Tar {
    /// Adds a directory.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, "", mode, b"")
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", mode, content)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, b"")
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, b"")
    }

    fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        target: &str,
        mode: u32,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        let raw = header.as_ustar_mut().unwrap();
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// The archive's bytes.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A small root file system: a shell, the usual tools, a user.
#[must_use]
pub fn box_tar() -> Vec<u8> {
    let mut tar = Tar::default();
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
    ] {
        tar = tar.directory(path, mode);
    }
    tar = tar.file("bin/busybox", 0o755, &busybox());
    let list = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if applet != "busybox" {
            tar = tar.symlink(&format!("bin/{applet}"), "busybox");
        }
    }
    tar.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/tmp:/bin/sh\n",
    )
    .file("etc/group", 0o644, b"root:x:0:\nalice:x:1001:\n")
    .file("etc/hostname", 0o644, b"box\n")
    .file("etc/machine-id", 0o444, b"")
    .file("etc/not-executable", 0o644, b"just text\n")
    .bytes()
}

/// So many small files of different content, in directories of 1,000.
#[must_use]
pub fn many_files_tar(count: usize) -> Vec<u8> {
    let directory = |index: usize| format!("d{}", index / 1000);
    let mut tar = Tar::default();
    for index in 0..count {
        if index % 1000 == 0 {
            tar = tar.directory(&directory(index), 0o755);
        }
        let mut content = format!("{index}\n").repeat(100);
        content.truncate(600);
        let name = format!("{}/f{index}", directory(index));
        tar = tar.file(&name, 0o644, content.as_bytes());
    }
    // A directory's time is that of its entry only where nothing was put into it since.
    for index in (0..count).step_by(1000) {
        tar = tar.directory(&directory(index), 0o755);
    }
    tar.directory("./", 0o755).bytes()
}

/// A root file system with nothing but one static program, `/busybox`.
#[must_use]
pub fn one_program_tar() -> Vec<u8> {
    Tar::default().file("busybox", 0o755, &busybox()).bytes()
}

fn busybox() -> Vec<u8> {
    assert!(
        Path::new(BUSYBOX).exists(),
        "{BUSYBOX} is not there; install busybox-static (scripts/setup)"
    );
    std::fs::read(BUSYBOX).unwrap()
}

/// The names in a tar.
///
/// # Panics
/// When it is no tar.
#[must_use]
pub fn read_tar(bytes: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect()
}
