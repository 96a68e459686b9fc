//! The machine itself: QEMU, its disks, its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::payload::{Payload, assets, checked};
use super::{VmError, asset, initramfs};
use crate::root;

/// The scratch disk's size; it is sparse.
const SCRATCH: &str = "48G";

pub(super) struct Machine {
    pub(super) memory: u32,
    pub(super) cpus: u32,
    pub(super) bound: Duration,
}

/// A directory that goes with this value.
struct Workplace(PathBuf);

impl Drop for Workplace {
    fn drop(&mut self) {
        // What stays is below the build's own directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where cargo builds.
pub(super) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

impl Machine {
    /// Runs a command with the assets and the staged programs; gives its exit status.
    pub(super) fn run(&self, command: &[String], interactive: bool) -> Result<u8, VmError> {
        self.run_with(command, &[], &[], interactive)
    }

    /// The same, with more directories and variables.
    pub(super) fn run_with(
        &self,
        command: &[String],
        more: &[PathBuf],
        variables: &[(String, String)],
        interactive: bool,
    ) -> Result<u8, VmError> {
        let place = target()
            .join("vm")
            .join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&place).map_err(VmError::file("make", &place))?;
        let place = Workplace(place);
        let (mut places, mut environment) = assets()?;
        places.extend(more.iter().cloned());
        environment.extend(variables.iter().cloned());
        let staged = target().join("test-bin");
        if staged.is_dir() && !places.contains(&staged) {
            places.push(staged);
        }
        if interactive {
            environment.push(("COWSLIP_VM_INTERACTIVE".to_owned(), "1".to_owned()));
            let term = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
            environment.push(("TERM".to_owned(), term));
        }
        let payload = Payload::new(&place.0)?.image(&places, &environment, command)?;
        let scratch = scratch(&place.0)?;
        let tree = asset("COWSLIP_TEST_VM_MODULES")?;
        let initrd = initramfs::build(&tree, &place.0)?;
        self.boot(&place.0, &initrd, &payload, &scratch, interactive)
    }

    fn boot(
        &self,
        place: &Path,
        initrd: &Path,
        payload: &Path,
        scratch: &Path,
        interactive: bool,
    ) -> Result<u8, VmError> {
        let console = place.join("console.log");
        let status = place.join("status");
        let mut qemu = Command::new("setpriv");
        // It ends with us, however we end.
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ]);
        qemu.args(["-machine", "q35"]);
        qemu.args(accelerator());
        qemu.args([
            "-m",
            &self.memory.to_string(),
            "-smp",
            &self.cpus.to_string(),
        ]);
        qemu.arg("-kernel")
            .arg(asset("COWSLIP_TEST_DEBIAN_VMLINUZ")?);
        qemu.arg("-initrd").arg(initrd);
        qemu.args([
            "-append",
            "console=ttyS0 quiet panic=-1 random.trust_cpu=on",
        ]);
        let disks = [
            (asset("COWSLIP_TEST_VM_ROOT")?, "snapshot=on"),
            (payload.to_owned(), "readonly=on"),
            (scratch.to_owned(), "snapshot=off"),
        ];
        for (index, (path, how)) in disks.iter().enumerate() {
            let path = path.display();
            qemu.args([
                "-drive",
                &format!("if=none,id=disk{index},file={path},format=raw,cache=unsafe,{how}"),
                "-device",
                &format!("virtio-blk-pci,drive=disk{index}"),
            ]);
        }
        qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        qemu.args([
            "-chardev",
            "stdio,id=io,signal=off",
            "-device",
            "virtconsole,chardev=io",
        ]);
        qemu.args([
            "-chardev",
            &format!("file,id=status,path={}", status.display()),
            "-device",
            "virtserialport,chardev=status,name=status",
        ]);
        qemu.args(["-serial", &format!("file:{}", console.display())]);
        if !interactive {
            qemu.stdin(Stdio::null());
        }
        let ended = self.wait(&mut qemu)?;
        let told = fs::read_to_string(&status).unwrap_or_default();
        let mut lines = told.lines();
        let started = lines.next();
        if let Some(up) = started {
            eprintln!("vm: the command started {up} s after the machine's power");
        }
        match lines.next().and_then(|line| line.trim().parse().ok()) {
            Some(0) => Ok(0),
            Some(code) => {
                keep(&console);
                Ok(code)
            }
            None => Err(VmError::Ended {
                why: ended,
                console: keep(&console),
            }),
        }
    }

    /// Waits for the machine's end, or ends it when its time is up. Gives what to say of it.
    fn wait(&self, qemu: &mut Command) -> Result<String, VmError> {
        let mut child = qemu.spawn().map_err(|source| VmError::Start {
            program: "setpriv".to_owned(),
            source,
        })?;
        let pid = child.id();
        let (tell, end) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let status = child.wait();
            // Nobody listens any more when the time was up.
            let _ = tell.send(());
            status
        });
        let late = end.recv_timeout(self.bound).is_err();
        if late {
            checked(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
        }
        let status = waiter.join().ok().and_then(Result::ok);
        Ok(match status {
            _ if late => format!(": it had {} s", self.bound.as_secs()),
            Some(status) if !status.success() => format!(": QEMU ended with {status}"),
            _ => String::new(),
        })
    }
}

/// Keeps the console of a run that failed.
fn keep(console: &Path) -> PathBuf {
    let kept = target().join("vm/console.log");
    // Without it there is only less to read.
    let _ = fs::copy(console, &kept);
    kept
}

fn scratch(place: &Path) -> Result<PathBuf, VmError> {
    let path = place.join("scratch.ext4");
    File::create(&path).map_err(VmError::file("make", &path))?;
    checked(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E"])
            .arg("lazy_itable_init=1,nodiscard")
            .arg(&path)
            .arg(SCRATCH),
    )?;
    Ok(path)
}

/// KVM where it boots a stock kernel, which only a trial tells (`COWSLIP_VM_ACCEL=kvm` skips it where
/// it is known); else emulation of a processor with nested virtualisation, so that guests inside
/// have KVM all the same.
fn accelerator() -> Vec<String> {
    let words: &[&str] = match std::env::var("COWSLIP_VM_ACCEL").as_deref() {
        Ok("kvm") => &["-accel", "kvm", "-cpu", "host"],
        _ => &["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"],
    };
    words.iter().map(|&word| word.to_owned()).collect()
}
