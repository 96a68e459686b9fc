//! `doctor`: what this host can do, what will be used and why, what is missing, and where the ledger
//! and the host differ.

use std::path::{Path, PathBuf};

use cowslip_host::kvm::{DEVICE, Kvm};
use cowslip_model::api::{Check, CheckStatus, DoctorReport};
use cowslip_model::size::GIB;
use cowslip_model::{ByteSize, Isolation};
use cowslip_vmm::VmmError;

use crate::Engine;
use crate::error::chain;
use crate::verbs::recover::in_words;

/// Less free disk than this is worth a warning.
const DISK_LOW: u64 = 2 * GIB;

pub(super) fn check(
    name: &str,
    status: CheckStatus,
    detail: impl Into<String>,
    mend: Option<&str>,
) -> Check {
    Check {
        name: name.to_owned(),
        status,
        detail: detail.into(),
        mend: mend.map(str::to_owned),
    }
}

impl Engine {
    /// Looks at everything; acts on nothing.
    pub async fn doctor(&self) -> DoctorReport {
        let mut checks = vec![self.check_monitor().await];
        checks.extend([
            self.check_backend(),
            check_kvm(&self.monitors.describe().accelerator_reason),
            check_device_mapper(),
            check_program("mke2fs", "template import", "apt-get install e2fsprogs"),
            self.check_agent(),
            self.check_kernel(),
            self.check_disk(),
            self.check_isolation(),
            self.check_networks(),
            self.check_imports(),
            self.check_prepared(),
        ]);
        let differences = match self.differences().await {
            Ok(actions) => actions.iter().map(in_words).collect(),
            Err(error) => {
                checks.push(check(
                    "ledger",
                    CheckStatus::Failed,
                    chain(&error).join(": "),
                    None,
                ));
                Vec::new()
            }
        };
        let healthy = checks
            .iter()
            .all(|check| check.status != CheckStatus::Failed);
        DoctorReport {
            healthy,
            checks,
            differences,
        }
    }

    async fn check_monitor(&self) -> Check {
        let isolation = self.config.machine.isolation;
        let found = async {
            let usual = self.monitors.usual(None).await?;
            let vmm = self.monitors.vmm(usual.kind, isolation).await?;
            Ok::<_, VmmError>((vmm.info(), usual.reason))
        };
        match found.await {
            Ok((info, reason)) => {
                let detail = format!("{} {} will be used: {reason}", info.kind, info.version);
                check("monitor", CheckStatus::Ok, detail, None)
            }
            Err(error) => check(
                "monitor",
                CheckStatus::Failed,
                chain(&error).join(": "),
                Some("apt-get install qemu-system-x86"),
            ),
        }
    }

    fn check_backend(&self) -> Check {
        let detail = format!(
            "{} ({})",
            self.volumes.backend().as_str(),
            self.notes.join("; ")
        );
        check("storage backend", CheckStatus::Ok, detail, None)
    }

    fn check_agent(&self) -> Check {
        match self.agent_path() {
            Ok(path) => check(
                "guest agent",
                CheckStatus::Ok,
                path.display().to_string(),
                None,
            ),
            Err(error) => check(
                "guest agent",
                CheckStatus::Failed,
                error.to_string(),
                Some("make build"),
            ),
        }
    }

    fn check_kernel(&self) -> Check {
        match self.default_kernel() {
            Ok(kernel) => {
                let detail = format!("\"{}\" ({}) is the default", kernel.name, kernel.release);
                check("guest kernel", CheckStatus::Ok, detail, None)
            }
            Err(_) => check(
                "guest kernel",
                CheckStatus::Warning,
                "none is imported; nothing can be started yet",
                Some("cowslip kernel import NAME VMLINUZ --modules DIR"),
            ),
        }
    }

    fn check_disk(&self) -> Check {
        let state = self.site.layout.state();
        match cowslip_host::usage::free_space(state) {
            Ok(free) => {
                let status = if free < DISK_LOW {
                    CheckStatus::Warning
                } else {
                    CheckStatus::Ok
                };
                let detail = format!("{} free for \"{}\"", ByteSize(free), state.display());
                check(
                    "disk space",
                    status,
                    detail,
                    (free < DISK_LOW).then_some("cowslip gc"),
                )
            }
            Err(error) => check("disk space", CheckStatus::Failed, error.to_string(), None),
        }
    }

    fn check_imports(&self) -> Check {
        let why = match cowslip_host::confine::is_possible() {
            Ok(()) => {
                let detail = "they are kept from the rest of the host and from any network";
                return check("imports", CheckStatus::Ok, detail.to_owned(), None);
            }
            Err(error) => crate::error::chain(&error).join(": "),
        };
        match self.config.images.require_confinement {
            true => check(
                "imports",
                CheckStatus::Failed,
                why,
                Some("boot a kernel with landlock (Linux 5.19 or later)"),
            ),
            false => check(
                "imports",
                CheckStatus::Warning,
                format!("{why}; and the configuration allows that"),
                Some("remove require_confinement = false from the configuration"),
            ),
        }
    }

    fn check_isolation(&self) -> Check {
        let tell = |status, detail: String, mend| check("isolation", status, detail, mend);
        if !cowslip_host::process::is_root() {
            return tell(
                CheckStatus::Ok,
                "machines run under this user, in QEMU's seccomp sandbox; the engine as root would give \
                 each its own uid"
                    .to_owned(),
                None,
            );
        }
        let base = self.config.machine.uid_base;
        let users = format!("each machine runs under a uid of its own, from {base} on");
        if self.config.machine.isolation == Isolation::Direct {
            return tell(
                CheckStatus::Warning,
                format!(
                    "{users}; but the configuration allows Firecracker without a jail, as root"
                ),
                Some("remove isolation = \"direct\" from the configuration"),
            );
        }
        if !self.config.machine.require_seccomp {
            return tell(
                CheckStatus::Warning,
                format!(
                    "{users}; but the configuration allows a Firecracker without seccomp filters"
                ),
                Some("remove require_seccomp = false from the configuration"),
            );
        }
        match self.site.host.cgroup_roots().as_slice() {
            [_, ..] => tell(
                CheckStatus::Ok,
                format!("{users}, and in a control group of its own"),
                None,
            ),
            [] => tell(
                CheckStatus::Warning,
                format!(
                    "{users}; but nothing bounds its memory and tasks: this host has no control groups with \
                     the controllers memory and pids that can be written to"
                ),
                Some("mount cgroup2 on /sys/fs/cgroup, with these controllers"),
            ),
        }
    }
}

fn check_kvm(reason: &str) -> Check {
    match Kvm::look() {
        Kvm::Absent => check(
            "kvm",
            CheckStatus::Warning,
            format!(
                "{DEVICE} is not there: guests run under software emulation, ten to thirty times slower"
            ),
            Some(
                "enable virtualisation in the firmware, or nested virtualisation on the outer host",
            ),
        ),
        Kvm::Opens => check(
            "kvm",
            CheckStatus::Ok,
            format!("{DEVICE} opens; {reason}"),
            None,
        ),
        Kvm::Closed(error) => check(
            "kvm",
            CheckStatus::Warning,
            format!("{DEVICE} does not open ({error}): guests run under software emulation"),
            Some("add this user to the group of /dev/kvm"),
        ),
    }
}

fn check_device_mapper() -> Check {
    if Path::new("/dev/mapper/control").exists() {
        check(
            "device-mapper",
            CheckStatus::Ok,
            "present; this version uses files for its layers",
            None,
        )
    } else {
        check(
            "device-mapper",
            CheckStatus::Ok,
            "not there, and not needed: layers are files",
            None,
        )
    }
}

fn check_program(program: &str, needed_for: &str, mend: &str) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file());
    match found {
        Some(path) => check(program, CheckStatus::Ok, path.display().to_string(), None),
        None => check(
            program,
            CheckStatus::Failed,
            format!("not found; {needed_for} needs it"),
            Some(mend),
        ),
    }
}
