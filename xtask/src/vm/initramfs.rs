//! What the machine's kernel starts: busybox, and the modules that make its disks readable. Everything
//! else is on the disks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{VmError, output, tree};

/// Modules before there is a root.
const EARLY: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "ext4"];
/// Those that tests want once there is one. KVM's is chosen by the processor.
pub(super) const LATER: [&str; 13] = [
    "dm_mod",
    "dm_snapshot",
    "dm_zero",
    "dm_flakey",
    "dm_log_writes",
    "dm_delay",
    "loop",
    "tun",
    "veth",
    "nf_tables",
    "vhost_vsock",
    "overlay",
    "virtio_rng",
];

/// Runs in the initramfs.
const INIT: &str = include_str!("guest/init");

/// Builds it in `directory` with modules from `modules`; gives its path.
pub(super) fn build(modules: &Path, directory: &Path) -> Result<PathBuf, VmError> {
    let work = directory.join("initramfs");
    for name in ["bin", "modules", "dev"] {
        let path = work.join(name);
        fs::create_dir_all(&path).map_err(VmError::file("make", &path))?;
    }
    copy(&busybox(), &work.join("bin/busybox"))?;
    tree::program(&work.join("init"), INIT)?;
    let mut order = String::new();
    for path in early(modules)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        copy(&path, &work.join("modules").join(name.as_ref()))?;
        order.push_str(&format!("{name}\n"));
    }
    tree::program(&work.join("modules/order"), &order)?;
    let image = directory.join("initramfs.cpio");
    let script = "find . | cpio --quiet --create --format=newc >\"$1\"";
    let mut cpio = Command::new("sh");
    cpio.args(["-c", script, "sh"]).arg(&image);
    output(cpio.current_dir(&work))?;
    Ok(image)
}

fn busybox() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let found = places.iter().find(|path| path.exists());
    found.unwrap_or(&places[0]).clone()
}

fn copy(from: &Path, to: &Path) -> Result<(), VmError> {
    fs::copy(from, to)
        .map(drop)
        .map_err(VmError::file("copy", from))
}

/// The files of the early modules and of what they need, in the order in which they load.
fn early(tree: &Path) -> Result<Vec<PathBuf>, VmError> {
    let release = release(tree)?;
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    for name in EARLY {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--show-depends", "--ignore-install", "--dirname"]);
        modprobe.arg(tree).args(["--set-version", &release, name]);
        let text = output(&mut modprobe)?;
        let text = String::from_utf8_lossy(&text);
        // What is built in says "builtin".
        let found = text.lines().filter_map(|line| line.strip_prefix("insmod "));
        for path in found.map(|path| PathBuf::from(path.trim())) {
            if seen.insert(path.clone()) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// The kernel's release, which names its modules' directory.
fn release(tree: &Path) -> Result<String, VmError> {
    let place = tree.join("lib/modules");
    let mut entries = fs::read_dir(&place).map_err(VmError::file("list", &place))?;
    let first = entries.find_map(Result::ok);
    let first = first.ok_or_else(|| VmError::NoModule {
        name: "any".to_owned(),
        tree: tree.to_owned(),
    })?;
    Ok(first.file_name().to_string_lossy().into_owned())
}
