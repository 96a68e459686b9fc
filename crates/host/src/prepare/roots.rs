//! Where a host tells of itself.

use std::path::{Path, PathBuf};

/// The trees that are looked at, and the program that loads modules. Tests have their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// sysfs.
    pub sys: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// Modules, a directory for each kernel.
    pub modules: PathBuf,
    /// Loads one.
    pub modprobe: PathBuf,
}

impl Default for Roots {
    /// Those of this host.
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
            modules: "/lib/modules".into(),
            modprobe: modprobe(),
        }
    }
}

impl Roots {
    /// The file of a sysctl.
    pub(super) fn sysctl(&self, name: &str) -> PathBuf {
        self.proc.join("sys").join(name.replace('.', "/"))
    }
}

/// The `PATH` of one who became root by `su` has no directories for root's programs.
fn modprobe() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join("modprobe"))
        .find(|program| program.is_file())
        .unwrap_or_else(|| Path::new("modprobe").to_owned())
}
