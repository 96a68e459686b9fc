//! What the machine's kernel starts: busybox, and the modules that make a disk readable. Everything
//! else is on the disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::VmError;

/// Modules before there is a root, and those that the tests want once there is one.
const EARLY: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_console"];
pub(super) const LATER: [&str; 14] = [
    "dm_mod",
    "dm_snapshot",
    "dm_zero",
    "dm_flakey",
    "dm_log_writes",
    "loop",
    "tun",
    "veth",
    "nf_tables",
    "vhost_vsock",
    "kvm_amd",
    "kvm_intel",
    "overlay",
    "virtio_rng",
];

/// Runs in the initramfs: finds the disks, and hands over to [`START`].
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox poweroff -f
/bin/busybox mkdir -p /root/payload
/bin/busybox mount -t ext4 -o ro /dev/vdb /root/payload || exec /bin/busybox poweroff -f
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root /payload/start
"#;

/// Builds it in `directory`; gives its path.
pub(super) fn build(tree: &Path, directory: &Path) -> Result<PathBuf, VmError> {
    let work = directory.join("initramfs.d");
    let _ = fs::remove_dir_all(&work);
    for name in ["bin", "modules", "dev"] {
        let path = work.join(name);
        fs::create_dir_all(&path).map_err(VmError::file("make", &path))?;
    }
    let busybox = find_busybox();
    copy(&busybox, &work.join("bin/busybox"))?;
    let init = work.join("init");
    fs::write(&init, INIT).map_err(VmError::file("write", &init))?;
    executable(&init)?;
    let mut order = String::new();
    for path in modules(tree, &EARLY)? {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        copy(&path, &work.join("modules").join(&name))?;
        order.push_str(&name);
        order.push('\n');
    }
    let path = work.join("modules/order");
    fs::write(&path, order).map_err(VmError::file("write", &path))?;
    let image = directory.join("initramfs.cpio");
    let script = format!(
        "cd '{}' && find . | cpio --quiet -o -H newc > '{}'",
        work.display(),
        image.display()
    );
    super::payload::checked(Command::new("sh").args(["-c", &script]))?;
    Ok(image)
}

fn find_busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/bin/busybox"))
}

fn copy(from: &Path, to: &Path) -> Result<(), VmError> {
    fs::copy(from, to)
        .map(drop)
        .map_err(VmError::file("copy", from))
}

pub(super) fn executable(path: &Path) -> Result<(), VmError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(VmError::file("make executable", path))
}

/// The files of modules and of what they need, in the order in which they load.
fn modules(tree: &Path, names: &[&str]) -> Result<Vec<PathBuf>, VmError> {
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    for name in names {
        let output = Command::new("modprobe")
            .args(["--show-depends", "--ignore-install", "--dirname"])
            .arg(tree)
            .args(["--set-version", &release(tree)?, name])
            .stderr(Stdio::null())
            .output()
            .map_err(|source| VmError::Start {
                program: "modprobe".to_owned(),
                source,
            })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found: Vec<PathBuf> = text
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
            .map(|path| PathBuf::from(path.trim()))
            .collect();
        if found.is_empty() && !text.contains("builtin") {
            return Err(VmError::NoModule {
                name: (*name).to_owned(),
                tree: tree.to_owned(),
            });
        }
        files.extend(found.into_iter().filter(|path| seen.insert(path.clone())));
    }
    Ok(files)
}

/// The kernel's release, which names its modules' directory.
pub(super) fn release(tree: &Path) -> Result<String, VmError> {
    let place = tree.join("lib/modules");
    let mut entries = fs::read_dir(&place).map_err(VmError::file("list", &place))?;
    let first = entries
        .find_map(Result::ok)
        .ok_or_else(|| VmError::NoModule {
            name: "any".to_owned(),
            tree: tree.to_owned(),
        })?;
    Ok(first.file_name().to_string_lossy().into_owned())
}
