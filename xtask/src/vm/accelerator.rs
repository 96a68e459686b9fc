//! KVM or emulation. That `/dev/kvm` opens is no proof that a kernel boots on it, so one is booted,
//! once, and the answer is kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::qemu::Boot;
use super::watch::Bounds;
use super::{VmError, output, watch};

/// How long the trial may take. On a working KVM it takes a second.
const BOUND: Duration = Duration::from_secs(10);

/// What runs the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The host's KVM.
    Kvm,
    /// Emulation of a processor with nested virtualisation, so that guests inside have KVM all the same.
    Tcg,
}

impl Accelerator {
    /// QEMU's words for it.
    pub(super) fn words(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => [
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                // Without what emulation cannot do, which QEMU would warn of one by one.
                "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,\
                 -topoext,-nrip-save,-xsavec",
            ],
        }
    }

    /// Words for the kernel's command line.
    pub(super) fn kernel_words(self) -> &'static str {
        match self {
            Self::Kvm => "",
            // What mitigations guard against is not emulated, and they make every return of the kernel
            // slow. Emulated nested paging goes wrong under load (QEMU 7.2: the host's registers are found
            // in the guest's control block, and guest or host dies); with shadow paging neither was seen. And
            // no cmpxchg16b, here or in the guests, for which 141 stands: see docs/qemu.md.
            Self::Tcg => "mitigations=off kvm_amd.npt=0 clearcpuid=141",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The one that `COWSLIP_VM_ACCEL` names, else what the trial says.
    pub(super) fn choose(
        cache: &Path,
        work: &Path,
        kernel: &Path,
        initrd: &Path,
    ) -> Result<Self, VmError> {
        match std::env::var("COWSLIP_VM_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok("") | Err(_) => {}
            Ok(other) => return Err(VmError::Accelerator(other.to_owned())),
        }
        if !Path::new("/dev/kvm").exists() {
            return Ok(Self::Tcg);
        }
        let known = cache.join(format!("accelerator-{}", host()?));
        match fs::read_to_string(&known).as_deref().map(str::trim) {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            // Not there, or nothing that we wrote.
            _ => {}
        }
        let (found, why) = trial(work, kernel, initrd)?;
        eprintln!("vm: {why}; remembered in \"{}\"", known.display());
        fs::write(&known, found.name()).map_err(VmError::file("write", &known))?;
        Ok(found)
    }
}

/// What the answer depends on: the host's kernel, its processor, and QEMU.
fn host() -> Result<String, VmError> {
    let mut hash = Sha256::new();
    hash.update(output(Command::new("qemu-system-x86_64").arg("--version"))?);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor
        .lines()
        .find(|line| line.starts_with("model name"));
    hash.update(model.unwrap_or_default());
    hash.update(fs::read("/proc/sys/kernel/osrelease").unwrap_or_default());
    let digest = hash.finalize();
    Ok(digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Boots the machine's kernel on KVM. It must also offer virtualisation to guests of its own, since
/// tests in it boot some.
fn trial(
    work: &Path,
    kernel: &Path,
    initrd: &Path,
) -> Result<(Accelerator, &'static str), VmError> {
    let status: PathBuf = work.join("trial");
    let console = work.join("trial.log");
    let boot = Boot {
        accelerator: Accelerator::Kvm,
        memory: 512,
        cpus: 1,
        kernel,
        initrd,
        words: "cowslip.probe",
        console: &console,
        status: &status,
    };
    let mut qemu = boot.command();
    // What it says of a KVM that does not work is no news.
    qemu.stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut found = (Accelerator::Tcg, "no guest boots on this host's KVM");
    let _ = watch::run(
        qemu,
        &status,
        Bounds {
            whole: BOUND,
            silence: BOUND,
        },
        |line| match line {
            "booted nested" => found = (Accelerator::Kvm, "guests boot on this host's KVM"),
            "booted flat" => found.1 = "this host's KVM has no nested virtualisation",
            _ => {}
        },
    )?;
    Ok(found)
}
