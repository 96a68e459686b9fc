//! QEMU's command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::accelerator::Accelerator;

/// What every machine of ours has.
pub(super) struct Boot<'a> {
    pub(super) accelerator: Accelerator,
    /// In MiB.
    pub(super) memory: u32,
    pub(super) cpus: u32,
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    /// More words of the kernel's command line.
    pub(super) words: &'a str,
    /// Where the kernel's console goes.
    pub(super) console: &'a Path,
    /// A named pipe: what the machine tells.
    pub(super) status: &'a Path,
}

/// A raw disk, and how it is used.
pub(super) enum Disk {
    /// What is written goes with the machine.
    Throwaway(PathBuf),
    ReadOnly(PathBuf),
    Writable(PathBuf),
}

impl Boot<'_> {
    /// The machine without disks.
    pub(super) fn command(&self) -> Command {
        let mut qemu = Command::new("setpriv");
        // It ends with us, however we end.
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.args(["-display", "none", "-machine", "q35"]);
        qemu.args(self.accelerator.words());
        qemu.args(["-m", &self.memory.to_string()]);
        qemu.args(["-smp", &self.cpus.to_string()]);
        qemu.arg("-kernel").arg(self.kernel);
        qemu.arg("-initrd").arg(self.initrd);
        let line = "console=ttyS0 quiet panic=-1 random.trust_cpu=on";
        let tuned = self.accelerator.kernel_words();
        qemu.args(["-append", &format!("{line} {tuned} {}", self.words)]);
        qemu.args(["-serial", &format!("file:{}", comma(self.console))]);
        let status = format!("file,id=status,path={}", comma(self.status));
        qemu.args(["-chardev", &status, "-serial", "chardev:status"]);
        qemu
    }
}

/// Gives the machine its disks, a source of randomness, and our standard input and output as its
/// first terminal.
pub(super) fn furnish(qemu: &mut Command, disks: &[Disk]) {
    for (index, disk) in disks.iter().enumerate() {
        let (path, how) = match disk {
            Disk::Throwaway(path) => (path, "snapshot=on"),
            Disk::ReadOnly(path) => (path, "readonly=on"),
            Disk::Writable(path) => (path, "discard=unmap"),
        };
        let path = comma(path);
        // None of them needs to survive: what a flush promises to the guest is that it does not lie
        // about order, and a machine that is gone is not looked at again.
        let drive = format!("if=none,id=disk{index},file={path},format=raw,cache=unsafe,{how}");
        let device = format!("virtio-blk-pci,drive=disk{index}");
        qemu.args(["-drive", &drive, "-device", &device]);
    }
    qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    // With a terminal its keys are the machine's, ^C too.
    qemu.args(["-chardev", "stdio,id=io,signal=off"]);
    qemu.args(["-device", "virtconsole,chardev=io"]);
}

/// A path in a list that commas separate.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
