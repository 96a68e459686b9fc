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

/// The distribution's kernel from the test assets, with an initramfs made in `dir`; none, told
/// loudly, where there are no assets.
pub(crate) fn debian(dir: &Path) -> Option<Guest> {
    let Some(assets) = std::env::var_os("COWSLIP_TEST_ASSETS") else {
        eprintln!(
            "SKIPPED: COWSLIP_TEST_ASSETS is not set: `make test-assets` makes what it names"
        );
        return None;
    };
    let base = Path::new(&assets).join("kernels/debian");
    let releases = base.join("lib/modules");
    let release = fs::read_dir(&releases)
        .unwrap_or_else(|error| panic!("{}: {error}", releases.display()))
        .next()
        .expect("no modules of the test kernel")
        .unwrap()
        .path();
    let initramfs = dir.join("test-initramfs");
    fs::write(&initramfs, archive(&modules(&release))).unwrap();
    Some(Guest {
        kernel: base.join("vmlinuz"),
        initramfs,
    })
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
