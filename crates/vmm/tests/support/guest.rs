//! A guest small enough to be made by the tests themselves: busybox and a script, as newc archive.

use std::fs;
use std::path::{Path, PathBuf};

const INIT: &[u8] = include_bytes!("init.sh");
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio-rng",
];

/// A kernel and an initramfs for it.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// Where the test assets are; none, told loudly, where nobody made any.
fn asset(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        eprintln!("SKIPPED: {variable} is not set: source the file that scripts/test-assets names");
    }
    found
}

/// The distribution's kernel, with the modules it needs in an initramfs made in `dir`.
pub(crate) fn debian(dir: &Path) -> Option<Guest> {
    let kernel = asset("COWSLIP_TEST_DEBIAN_VMLINUZ")?;
    let modules = modules(&asset("COWSLIP_TEST_DEBIAN_MODULES")?.join("lib/modules"));
    Some(guest(dir, kernel, &modules))
}

/// The purpose-built kernel, which has everything built in.
pub(crate) fn purpose_built(dir: &Path) -> Option<Guest> {
    asset("COWSLIP_TEST_GUEST_BZIMAGE").map(|kernel| guest(dir, kernel, &[]))
}

fn guest(dir: &Path, kernel: PathBuf, modules: &[(String, Vec<u8>)]) -> Guest {
    let initramfs = dir.join("initramfs");
    fs::write(&initramfs, archive(modules)).unwrap();
    Guest { kernel, initramfs }
}

fn modules(tree: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![tree.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            } else if MODULES
                .iter()
                .any(|name| path.file_name() == Some(format!("{name}.ko").as_ref()))
            {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    assert!(
        found.len() >= 4,
        "the test kernel's modules are not where they should be"
    );
    found
}

fn archive(modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .expect("the tests need Debian's package busybox-static");
    let mut cpio = Cpio::default();
    for dir in ["bin", "dev", "m", "proc", "sys"] {
        cpio.entry(dir, 0o040_755, (0, 0), &[]);
    }
    cpio.entry("dev/console", 0o020_600, (5, 1), &[]);
    cpio.entry("dev/null", 0o020_666, (1, 3), &[]);
    cpio.entry("init", 0o100_755, (0, 0), INIT);
    cpio.entry("bin/busybox", 0o100_755, (0, 0), &busybox);
    cpio.entry("bin/sh", 0o120_777, (0, 0), b"busybox");
    for (name, bytes) in modules {
        cpio.entry(&format!("m/{name}"), 0o100_644, (0, 0), bytes);
    }
    cpio.entry("TRAILER!!!", 0, (0, 0), &[]);
    cpio.bytes
}

#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: usize,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let (inode, size, (major, minor)) = (self.inode, content.len(), device);
        let name_size = name.len() + 1;
        let header = format!(
            "070701{inode:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{size:08X}{:08X}{:08X}{major:08X}{minor:08X}{name_size:08X}{:08X}",
            0, 0, 1, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
