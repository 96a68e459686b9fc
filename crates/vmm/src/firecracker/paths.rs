//! Where a machine's files are: on the host, and for Firecracker at constant paths.
//!
//! ```text
//!   host                     direct mode                  jail
//!   <run>/vm/<id>/self/      /run/cowslip/self/           /run/cowslip/self/
//!   the disk                 /run/cowslip/self/rootfs     /run/cowslip/self/rootfs (a node of its own)
//!   kernel, initramfs        where they are               /kernel, /initramfs
//!   an image to be restored  where it is                  /image
//!   <work>/jail/             -                            /exchange/ (where it saves to)
//! ```
//!
//! Device state records the paths below `/run/cowslip/self` and no others.

use std::path::{Path, PathBuf};

use cowslip_host::layout::Layout;
use cowslip_model::SandboxId;

/// What Firecracker sees empty but for its own. Nothing that it needs lies there on the host.
pub(super) const BLANK: &str = "/run";
/// Where every Firecracker sees its own runtime directory.
pub(super) const SELF: &str = "/run/cowslip/self";

const API: &str = "api";
const VSOCK: &str = "vsock";
const DISK: &str = "rootfs";
const LOG: &str = "monitor.log";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const KERNEL: &str = "/kernel";
const INITRAMFS: &str = "/initramfs";
const IMAGE: &str = "/image";
const EXCHANGE: &str = "/exchange";

/// One machine's paths on the host.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    /// What Firecracker sees as its own runtime directory. In a jail it may do there what it likes:
    /// what lies below is never trusted.
    pub(super) directory: PathBuf,
    pub(super) api: PathBuf,
    pub(super) vsock: PathBuf,
    pub(super) log: PathBuf,
    /// Device state, while an image is written or read.
    pub(super) state: PathBuf,
    /// The pipe of its serial console.
    pub(super) console: PathBuf,
}

impl Paths {
    pub(super) fn new(layout: &Layout, sandbox: SandboxId) -> Self {
        let machine = layout.machine(sandbox);
        let directory = machine.join("self");
        Self {
            api: directory.join(API),
            vsock: directory.join(VSOCK),
            log: directory.join(LOG),
            state: directory.join(STATE),
            console: machine.join("console"),
            directory,
        }
    }

    /// The directory of the machine's that the engine alone writes to.
    pub(super) fn own(&self) -> &Path {
        self.directory.parent().unwrap_or(&self.directory)
    }
}

/// Where a jailed Firecracker saves to, on the host: on the file system of the images, so that what it
/// wrote becomes one without being copied.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) directory: PathBuf,
    pub(super) memory: PathBuf,
    pub(super) state: PathBuf,
}

impl Exchange {
    pub(super) fn new(work: &Path) -> Self {
        let directory = work.join("jail");
        Self {
            memory: directory.join(MEMORY),
            state: directory.join(STATE),
            directory,
        }
    }
}

/// Whether Firecracker sees `path` as it is on the host, in direct mode.
pub(super) fn is_seen(path: &Path) -> bool {
    path.is_absolute() && !path.starts_with(BLANK)
}

/// Where the jailer makes a jail for `program` under `id`.
pub(super) fn jail(program: &str, id: &str) -> PathBuf {
    Path::new(JAILS).join(program).join(id).join("root")
}

/// The jailer's base directory, in the machine's own view.
pub(super) const JAILS: &str = "/run/jails";

/// The name of the machine's network namespace there, for the jailer.
pub(super) const NETNS: &str = "/run/netns";

/// Paths as Firecracker sees them.
pub(super) mod seen {
    use super::{
        API, DISK, EXCHANGE, IMAGE, INITRAMFS, KERNEL, LOG, MEMORY, Path, PathBuf, SELF, STATE,
        VSOCK,
    };

    pub(in super::super) fn api() -> PathBuf {
        Path::new(SELF).join(API)
    }

    pub(in super::super) fn vsock() -> PathBuf {
        Path::new(SELF).join(VSOCK)
    }

    pub(in super::super) fn disk() -> PathBuf {
        Path::new(SELF).join(DISK)
    }

    pub(in super::super) fn log() -> PathBuf {
        Path::new(SELF).join(LOG)
    }

    pub(in super::super) fn state() -> PathBuf {
        Path::new(SELF).join(STATE)
    }

    pub(in super::super) fn kernel() -> PathBuf {
        KERNEL.into()
    }

    pub(in super::super) fn initramfs() -> PathBuf {
        INITRAMFS.into()
    }

    pub(in super::super) fn image() -> PathBuf {
        IMAGE.into()
    }

    pub(in super::super) fn exchange() -> PathBuf {
        EXCHANGE.into()
    }

    pub(in super::super) fn exchanged_memory() -> PathBuf {
        Path::new(EXCHANGE).join(MEMORY)
    }

    pub(in super::super) fn exchanged_state() -> PathBuf {
        Path::new(EXCHANGE).join(STATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_the_same_paths_inside() {
        let layout = Layout::new("/s".into(), "/run/cowslip".into());
        let paths = Paths::new(&layout, SandboxId::from_bits(1));
        assert!(paths.directory.starts_with("/run/cowslip"));
        assert_eq!(paths.api.file_name(), seen::api().file_name());
        assert_eq!(seen::disk(), Path::new("/run/cowslip/self/rootfs"));
        assert!(is_seen(Path::new("/var/lib/cowslip/kernels/1/vmlinuz")));
        assert!(!is_seen(Path::new("/run/x")) && !is_seen(Path::new("x")));
    }

    #[test]
    fn a_jail_is_where_the_jailer_makes_it() {
        let root = jail("firecracker", "cowslip-1-2");
        assert_eq!(root, Path::new("/run/jails/firecracker/cowslip-1-2/root"));
    }
}
