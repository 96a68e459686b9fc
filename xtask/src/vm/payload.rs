//! The machine's second disk: what this run brings in, under the paths it has here.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::initramfs::{LATER, executable};
use super::{VmError, asset};

/// Directories that the machine sees under the same path, read-only.
pub(super) struct Payload {
    directory: PathBuf,
}

/// Runs on the machine's root: sets it up as a host would be, runs the command on hvc0, tells its exit
/// status on the port, and cuts the power.
const START: &str = r#"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in MODULES; do modprobe -q "$module"; done
ip link set lo up 2>/dev/null || busybox ip link set lo up
hostname test-vm 2>/dev/null || busybox hostname test-vm
for place in $(cat /payload/places); do
    mkdir -p "$place"; mount --bind "/payload/files$place" "$place"
done
# As udev would; the group needs no name.
[ -e /dev/kvm ] && chgrp 999 /dev/kvm && chmod 660 /dev/kvm
mount /dev/vdc /tmp; chmod 1777 /tmp
export DM_DISABLE_UDEV=1 COWSLIP_IN_TEST_VM=1
. /payload/environment
port=none
for found in /sys/class/virtio-ports/*; do
    [ "$(cat "$found/name")" = status ] && port=/dev/${found##*/}
done
cut -d' ' -f1 /proc/uptime >"$port"
[ -n "$COWSLIP_VM_INTERACTIVE" ] || stty -F /dev/hvc0 raw -echo
setsid -c sh -c '. /payload/command' </dev/hvc0 >/dev/hvc0 2>&1
status=$?
sync
echo "$status" >"$port"
busybox poweroff -f
"#;

impl Payload {
    /// An empty one, in `directory`.
    pub(super) fn new(directory: &Path) -> Result<Self, VmError> {
        let files = directory.join("payload.d/files");
        fs::create_dir_all(&files).map_err(VmError::file("make", &files))?;
        Ok(Self {
            directory: directory.join("payload.d"),
        })
    }

    /// Makes an image of everything: `places` are directories that it shows under their own paths.
    pub(super) fn image(
        &self,
        places: &[PathBuf],
        environment: &[(String, String)],
        command: &[String],
    ) -> Result<PathBuf, VmError> {
        let mut lines = String::new();
        for place in places {
            let to = self
                .directory
                .join("files")
                .join(place.strip_prefix("/").unwrap_or(place));
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(VmError::file("make", parent))?;
            }
            // Hard links where they can be, since these are hundreds of megabytes.
            let linked = Command::new("cp")
                .args(["-a", "--link"])
                .args([place.as_os_str(), to.as_os_str()])
                .stderr(Stdio::null())
                .status();
            if !linked.is_ok_and(|status| status.success()) {
                let _ = fs::remove_dir_all(&to);
                checked(
                    Command::new("cp")
                        .arg("-a")
                        .args([place.as_os_str(), to.as_os_str()]),
                )?;
            }
            lines.push_str(&format!("{}\n", place.display()));
        }
        let exports: String = environment
            .iter()
            .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
            .collect();
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        let start = START.replace("MODULES", &LATER.join(" "));
        for (name, text) in [
            ("places", lines),
            ("environment", exports),
            ("command", format!("{}\n", words.join(" "))),
            ("start", start),
        ] {
            let path = self.directory.join(name);
            fs::write(&path, text).map_err(VmError::file("write", &path))?;
        }
        executable(&self.directory.join("start"))?;
        let image = self.directory.with_extension("ext4");
        ext4(&self.directory, &image)?;
        Ok(image)
    }
}

/// A read-only file system of a tree; no larger than it must be.
fn ext4(tree: &Path, image: &Path) -> Result<(), VmError> {
    let output = Command::new("du")
        .args(["-sk", "--apparent-size"])
        .arg(tree)
        .output()
        .map_err(|source| VmError::Start {
            program: "du".to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kib: u64 = text
        .split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(1 << 20);
    let size = format!("{}k", kib + kib / 4 + 65_536);
    checked(
        Command::new("mke2fs")
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-m",
                "0",
                "-d",
            ])
            .args([tree.as_os_str(), image.as_os_str(), OsStr::new(&size)]),
    )
}

/// Runs a program that must succeed.
pub(super) fn checked(command: &mut Command) -> Result<(), VmError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| VmError::Start {
            program: program.clone(),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(VmError::Failed {
        program,
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Names and values of an environment.
pub(super) type Variables = Vec<(String, String)>;

/// The assets that guests of the tests need.
pub(super) fn assets() -> Result<(Vec<PathBuf>, Variables), VmError> {
    let names = [
        "COWSLIP_TEST_ROOTFS",
        "COWSLIP_TEST_ROOTFS_TAR",
        "COWSLIP_TEST_DEBIAN_VMLINUZ",
        "COWSLIP_TEST_DEBIAN_MODULES",
        "COWSLIP_TEST_GUEST_BZIMAGE",
        "COWSLIP_TEST_GUEST_VMLINUX",
    ];
    let mut places: Vec<PathBuf> = Vec::new();
    let mut environment = Vec::new();
    for name in names {
        let path = asset(name)?;
        environment.push((name.to_owned(), path.display().to_string()));
        let place = path.parent().map_or(path.clone(), Path::to_owned);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    // A place inside another comes with it.
    let all = places.clone();
    places.retain(|place| {
        !all.iter()
            .any(|other| other != place && place.starts_with(other))
    });
    Ok((places, environment))
}
