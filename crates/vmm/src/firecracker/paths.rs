//! Where a machine's files are: for Firecracker at one constant path, on the host in its runtime
//! directory.

use std::path::{Path, PathBuf};

use cowslip_host::layout::Layout;
use cowslip_host::process::{Binding, View};
use cowslip_model::SandboxId;

/// What Firecracker sees empty but for its own runtime directory. Nothing that it needs lies there.
const BLANK: &str = "/run";
/// Where every Firecracker sees its own runtime directory. Images record paths below it.
const SELF: &str = "/run/cowslip/self";

const API: &str = "api";
const VSOCK: &str = "vsock";
const DISK: &str = "rootfs";
const LOG: &str = "monitor.log";
const STATE: &str = "state";

/// One machine's paths on the host.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) directory: PathBuf,
    pub(super) api: PathBuf,
    pub(super) vsock: PathBuf,
    /// The place that the disk covers in the machine's view.
    pub(super) disk: PathBuf,
    pub(super) log: PathBuf,
    /// The pipe of its serial console.
    pub(super) console: PathBuf,
    /// Device state, while an image is written or read.
    pub(super) state: PathBuf,
}

impl Paths {
    pub(super) fn new(layout: &Layout, sandbox: SandboxId) -> Self {
        let directory = layout.machine(sandbox);
        Self {
            api: directory.join(API),
            vsock: directory.join(VSOCK),
            disk: directory.join(DISK),
            log: directory.join(LOG),
            console: directory.join("console"),
            state: directory.join(STATE),
            directory,
        }
    }

    /// What this machine's Firecracker sees.
    pub(super) fn view(&self, disk: Option<&Path>) -> View {
        let own = Binding {
            source: self.directory.clone(),
            target: SELF.into(),
        };
        let disk = disk.map(|disk| Binding {
            source: disk.to_owned(),
            target: self::disk(),
        });
        View {
            blank: BLANK.into(),
            bindings: [own].into_iter().chain(disk).collect(),
        }
    }
}

/// Whether Firecracker sees `path` as it is on the host.
pub(super) fn is_seen(path: &Path) -> bool {
    path.is_absolute() && !path.starts_with(BLANK)
}

pub(super) fn api() -> PathBuf {
    Path::new(SELF).join(API)
}

pub(super) fn vsock() -> PathBuf {
    Path::new(SELF).join(VSOCK)
}

pub(super) fn disk() -> PathBuf {
    Path::new(SELF).join(DISK)
}

pub(super) fn log() -> PathBuf {
    Path::new(SELF).join(LOG)
}

pub(super) fn state() -> PathBuf {
    Path::new(SELF).join(STATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_the_same_paths_inside() {
        let layout = Layout::new("/s".into(), "/run/cowslip".into());
        let paths = Paths::new(&layout, SandboxId::from_bits(1));
        let view = paths.view(Some(Path::new("/dev/dm-7")));
        assert_eq!(view.bindings[0].source, paths.directory);
        assert_eq!(view.bindings[0].target, Path::new("/run/cowslip/self"));
        // The place in the runtime directory is what the disk covers.
        assert_eq!(paths.disk.file_name(), disk().file_name());
        assert_eq!(
            view.bindings[1].target,
            Path::new("/run/cowslip/self/rootfs")
        );
        assert!(is_seen(Path::new("/var/lib/cowslip/kernels/1/vmlinuz")));
        assert!(!is_seen(Path::new("/run/x")) && !is_seen(Path::new("x")));
    }
}
