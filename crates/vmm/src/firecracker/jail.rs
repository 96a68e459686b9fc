//! The jail: Firecracker's own jailer, in a mount namespace that holds the jail.
//!
//! ```text
//!   host mounts ── the process' own namespace ────────────────── the jail's
//!                  /run: tmpfs, devices allowed                  (pivot_root by the jailer)
//!                  /run/jails/firecracker/<id>/root/      ──►    /
//!                       ├ run/cowslip/self   bound               /run/cowslip/self
//!                       ├ kernel, initramfs, image  bound        /kernel …
//!                       └ dev/kvm …          mknod by the jailer /dev/kvm …
//! ```
//!
//! The tree lies on a tmpfs that only this process sees. So there is never a stale jail, nothing on the
//! host is mounted with devices allowed (R9), and nothing is to be taken down: it goes with the process.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use cowslip_host::process::{Binding, Credentials, Node, View};
use cowslip_host::{DeviceNumber, head};
use cowslip_model::DiskFormat;
use rustix::fs::{AtFlags, CWD, linkat};

use super::Beginning;
use super::launch::failed;
use super::paths::{self, BLANK, Exchange, JAILS, NETNS, Paths, SELF, seen};
use super::program::Program;
use crate::{MachineConfig, VmmError};

/// Open files of a Firecracker: its devices, its sockets and the connections to them.
const FILES_MAX: u64 = 1024;
/// What it may write to a file beyond the memory of its guest, in bytes: an image's other parts, its log.
const FILE_SLACK: u64 = 64 << 20;
/// Room in the jail beyond the copy of the program that the jailer makes, in bytes.
const ROOM: u64 = 1 << 20;

/// What a jail is made of.
pub(super) struct Jail<'a> {
    pub(super) firecracker: &'a Program,
    pub(super) user: &'a Credentials,
    /// Its id, which is its process' mark.
    pub(super) id: &'a str,
}

impl Jail<'_> {
    fn name(&self) -> &str {
        let name = self.firecracker.path.file_name();
        // Found by its name, or given in the configuration, which is UTF-8.
        name.and_then(|name| name.to_str()).unwrap_or("firecracker")
    }

    /// Its root, as the process' own namespace has it.
    pub(super) fn root(&self) -> PathBuf {
        paths::jail(self.name(), self.id)
    }

    /// The jailer's arguments; those of Firecracker follow.
    pub(super) fn arguments(&self, config: &MachineConfig) -> Vec<String> {
        let disk = config.disk.as_ref();
        // A disk that is a device is not limited by it.
        let file = disk.map_or(0, |disk| disk.size).max(config.memory.bytes());
        let limit = file.saturating_add(FILE_SLACK);
        let text = |path: &Path| path.display().to_string();
        let netns = config
            .network
            .iter()
            .flat_map(|_| ["--netns".to_owned(), text(Path::new(NETNS))]);
        let options = [
            "--id".to_owned(),
            self.id.to_owned(),
            "--exec-file".to_owned(),
            text(&self.firecracker.path),
            "--uid".to_owned(),
            self.user.uid.to_string(),
            "--gid".to_owned(),
            self.user.gid.to_string(),
            "--chroot-base-dir".to_owned(),
            JAILS.to_owned(),
            "--resource-limit".to_owned(),
            format!("no-file={FILES_MAX}"),
            "--resource-limit".to_owned(),
            format!("fsize={limit}"),
        ];
        options
            .into_iter()
            .chain(netns)
            .chain(["--".to_owned()])
            .collect()
    }

    /// What the process sees; makes the directories that it may write to, and lets its user read what it
    /// is given. Blocking.
    pub(super) fn view(
        &self,
        paths: &Paths,
        config: &MachineConfig,
        beginning: &Beginning,
    ) -> Result<View, VmmError> {
        let exchange = Exchange::new(&config.work);
        self.own_directory(&paths.directory)?;
        self.own_directory(&exchange.directory)?;
        let root = self.root();
        let bind = |source: &Path, inside: &Path| Binding {
            source: source.to_owned(),
            target: below(&root, inside),
        };
        let mut bindings = vec![
            bind(&paths.directory, Path::new(SELF)),
            bind(&exchange.directory, &seen::exchange()),
        ];
        match beginning {
            Beginning::Boot => {
                for (file, inside) in [
                    (&config.kernel, seen::kernel()),
                    (&config.initramfs, seen::initramfs()),
                ] {
                    let_read(file)?;
                    bindings.push(bind(file, &inside));
                }
            }
            Beginning::Image(image) => {
                let_read(image)?;
                bindings.push(bind(image, &seen::image()));
            }
        }
        if let Some(netns) = config.netns() {
            bindings.push(Binding {
                source: netns,
                target: NETNS.into(),
            });
        }
        let mut nodes = Vec::new();
        if let Some(disk) = &config.disk {
            let path = &disk.top.path;
            let target = below(&root, &seen::disk());
            if disk.top.format == DiskFormat::Raw && !is_device(path)? {
                chown(path, Some(self.user.uid), Some(self.user.gid))
                    .map_err(failed("give the user of its jail the disk", path))?;
                let source = path.clone();
                bindings.push(Binding { source, target });
            } else {
                let device = number(path)?;
                nodes.push(Node {
                    device,
                    uid: self.user.uid,
                    gid: self.user.gid,
                    target,
                });
            }
        }
        let program = self.firecracker.path.as_path();
        let length = fs::metadata(program)
            .map_err(failed("look at", program))?
            .len();
        Ok(View {
            blank: BLANK.into(),
            jail: Some(length.saturating_add(ROOM)),
            bindings,
            nodes,
        })
    }

    /// A directory of the jail's user, empty: what an earlier process left there goes.
    fn own_directory(&self, path: &Path) -> Result<(), VmmError> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove what an earlier machine left in", path)(
                    error,
                ));
            }
            _ => {}
        }
        fs::create_dir(path).map_err(failed("make", path))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(failed("set the mode of", path))?;
        chown(path, Some(self.user.uid), Some(self.user.gid))
            .map_err(failed("give the user of its jail", path))
    }
}

fn below(root: &Path, inside: &Path) -> PathBuf {
    root.join(inside.strip_prefix("/").unwrap_or(inside))
}

fn is_device(path: &Path) -> Result<bool, VmmError> {
    let found = fs::metadata(path).map_err(failed("look at", path))?;
    Ok(found.file_type().is_block_device())
}

fn number(path: &Path) -> Result<DeviceNumber, VmmError> {
    let found = fs::metadata(path).map_err(failed("look at", path))?;
    Ok(DeviceNumber {
        major: rustix::fs::major(found.rdev()),
        minor: rustix::fs::minor(found.rdev()),
    })
}

/// Lets every user read a file of ours that is only read from now on. It lies below directories that
/// only the engine's user can enter; jails get it bound to a path of theirs.
fn let_read(path: &Path) -> Result<(), VmmError> {
    let file = open(path)?;
    let found = file.metadata().map_err(failed("look at", path))?;
    if found.mode() & 0o004 == 0 {
        file.set_permissions(Permissions::from_mode(0o444))
            .map_err(failed("set the mode of", path))?;
    }
    Ok(())
}

/// Opens a plain file where something hostile may lie.
pub(super) fn open(path: &Path) -> Result<File, VmmError> {
    head::open(path)?.ok_or_else(|| failed("open", path)(io::ErrorKind::NotFound.into()))
}

/// Takes what a jailed Firecracker saved out of its jail, as the new file `image`, which is the engine's
/// from then on: the file itself, under another name.
pub(super) fn take_out(exchange: &Exchange, image: &Path) -> Result<File, VmmError> {
    let path = &exchange.memory;
    let read = open(path)?;
    fchown(&read, Some(0), Some(0)).map_err(failed("take", path))?;
    read.set_permissions(Permissions::from_mode(0o600))
        .map_err(failed("set the mode of", path))?;
    // By descriptor: whatever stands under its name by now.
    let own = format!("/proc/self/fd/{}", read.as_raw_fd());
    linkat(CWD, own, CWD, image, AtFlags::SYMLINK_FOLLOW)
        .map_err(|error| failed("create the image", image)(error.into()))?;
    File::options()
        .read(true)
        .write(true)
        .open(image)
        .map_err(failed("open the image", image))
}

/// Refuses an image that the Firecracker which saved it holds on to: one that was taken over could change it
/// after it was published. Its file is the engine's by now, so that nobody in the jail can open it again.
pub(super) fn require_settled(image: &Path) -> Result<(), VmmError> {
    let file = open(image)?;
    let written = head::is_written(&file).map_err(failed("look who writes", image))?;
    if !written {
        return Ok(());
    }
    let held = io::Error::new(
        io::ErrorKind::PermissionDenied,
        "its Firecracker holds it open, which none does that was not taken over: remove the sandbox",
    );
    Err(failed("publish the image", image)(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_its_monitor_holds_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let held = File::create_new(&image).unwrap();
        let error = require_settled(&image).unwrap_err().to_string();
        assert!(
            error.contains("/image") && error.contains("remove the sandbox"),
            "{error}"
        );
        drop(held);
        require_settled(&image).unwrap();
    }
}
