//! The floor: QEMU started by hand, with the machine, kernel, modules and root file system of a
//! sandbox, whose init is a shell script that runs the same command on the console.
//!
//! The machine's flags are read off a monitor that the engine started, so that the two can never come
//! to differ; what belongs to the engine's channels is left out.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::lab::{Kernel, Lab, complete, figure};

/// What the command prints. It is not in the kernel's command line, which the console might show.
pub(crate) const WORD: &str = "cowslip-bench-ready";
/// The command that is measured, here and in a sandbox.
pub(crate) const COMMAND: [&str; 3] = ["/bin/sh", "-c", "echo cowslip-bench-ready"];
/// Output before the command's at most, in bytes.
const OUTPUT_MAX: usize = 1 << 20;

/// Options of a monitor that say what the machine is.
const KEPT: &[&str] = &[
    "-machine", "-accel", "-cpu", "-smp", "-m", "-rtc", "-append",
];

const INIT: &str = r#"#!/busybox sh
/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
if [ -e /modules/load-order ]; then
    while read -r module; do /busybox insmod "/$module"; done </modules/load-order
fi
until [ -b /dev/vda ]; do :; done
/busybox mount -t ext4 /dev/vda /newroot
exec /busybox chroot /newroot /bin/sh -c 'echo cowslip-bench-ready; sleep 1000'
"#;

/// How to start it.
#[derive(Debug)]
pub(crate) struct Floor {
    program: PathBuf,
    arguments: Vec<String>,
    kernel: PathBuf,
    initramfs: PathBuf,
    image: PathBuf,
}

impl Floor {
    /// Learns the machine from a sandbox that uses `kernel`, and makes an initramfs.
    pub(crate) fn of(lab: &Lab, kernel: &Kernel) -> Result<Self, Failure> {
        let name = "bench-model";
        lab.cowslip([
            "run",
            "-d",
            "--name",
            name,
            "--kernel",
            kernel.name,
            crate::lab::TEMPLATE,
        ])?;
        let pid = figure(&lab.json(["inspect", name])?, "pid")?;
        let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        lab.remove(name)?;
        Ok(Self {
            program,
            arguments: machine(&String::from_utf8(line)?),
            kernel: kernel.directory.join("vmlinuz"),
            initramfs: initramfs(lab, kernel)?,
            image: lab.image()?,
        })
    }

    /// Boots until the command's output is there.
    pub(crate) fn boot(&self) -> Result<Duration, Failure> {
        let drive = format!(
            "file={},format=raw,if=none,id=disk,snapshot=on",
            self.image.display()
        );
        let begun = Instant::now();
        let child = Command::new(&self.program)
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(&self.arguments)
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut running = Running(child);
        wait_for_word(&mut running.0)?;
        Ok(begun.elapsed())
    }
}

/// Ends the process whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Ended by itself: nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for_word(child: &mut Child) -> Result<(), Failure> {
    let mut output = child.stdout.take().ok_or("plain QEMU has no output")?;
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = output.read(&mut piece)?;
        seen.extend_from_slice(piece.get(..count).unwrap_or_default());
        if seen
            .windows(WORD.len())
            .any(|window| window == WORD.as_bytes())
        {
            return Ok(());
        }
        if count == 0 || seen.len() > OUTPUT_MAX {
            let said = String::from_utf8_lossy(&seen).into_owned();
            return Err(format!("plain QEMU did not run the command: {said}").into());
        }
    }
}

/// What of a monitor's command line says what its machine is.
fn machine(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split('\0').collect();
    words
        .windows(2)
        .filter(|pair| match pair {
            // Devices that stand alone, and the bus of those that do not.
            ["-device", device] => !device.contains("drive=") && !device.contains("chardev="),
            [option, _] => KEPT.contains(option),
            _ => false,
        })
        .flatten()
        .map(|word| (*word).to_owned())
        .collect()
}

/// Busybox and a script, before the modules that the engine's own initramfs has.
fn initramfs(lab: &Lab, kernel: &Kernel) -> Result<PathBuf, Failure> {
    let tree = lab.scratch().join(format!("floor-{}", kernel.name));
    for directory in ["dev", "newroot"] {
        std::fs::create_dir_all(tree.join(directory))?;
    }
    let busybox = busybox()?;
    std::fs::copy(&busybox, tree.join("busybox"))?;
    std::fs::write(tree.join("init"), INIT)?;
    std::fs::set_permissions(
        tree.join("init"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let path = tree.with_extension("cpio");
    let mut archiver = Command::new(&busybox);
    archiver
        .current_dir(&tree)
        .args(["sh", "-c", "find . | busybox cpio -o -H newc >\"$1\"", "sh"])
        .arg(&path);
    complete(&mut archiver)?;
    let modules = kernel.directory.join("modules.cpio");
    if modules.is_file() {
        append(&path, &modules)?;
    }
    Ok(path)
}

/// Archives of an initramfs begin at multiples of four bytes.
fn append(path: &Path, more: &Path) -> Result<(), Failure> {
    let mut file = File::options().append(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len())?;
    file.write_all(&[0; 4][..length.next_multiple_of(4) - length])?;
    std::io::copy(&mut File::open(more)?, &mut file)?;
    Ok(())
}

fn busybox() -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("busybox"))
        .find(|file| file.is_file())
        .ok_or_else(|| "there is no busybox: install \"busybox-static\"".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_engine_is_left_out() {
        let line = "qemu\0-S\0-machine\0q35\0-chardev\0socket,id=a,fd=3\0-device\0virtserialport,chardev=a\
                    \0-device\0virtio-rng-pci\0-kernel\0/dev/fdset/1\0-append\0quiet\0";
        assert_eq!(
            machine(line),
            [
                "-machine",
                "q35",
                "-device",
                "virtio-rng-pci",
                "-append",
                "quiet"
            ]
        );
    }
}
