//! Where programs and assets are: `scripts/test` says so in the environment.

use std::path::{Path, PathBuf};

/// A guest kernel that tests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The purpose-built one: no modules, boots fastest.
    Guest,
    /// The distribution's cloud kernel, with modules in its initramfs.
    Debian,
}

impl Kernel {
    /// The name it is imported under.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Debian => "debian",
        }
    }

    /// The kernel's file.
    #[must_use]
    pub fn image(self) -> PathBuf {
        match self {
            Self::Guest => asset("COWSLIP_TEST_GUEST_BZIMAGE"),
            Self::Debian => asset("COWSLIP_TEST_DEBIAN_VMLINUZ"),
        }
    }

    /// The tree with its modules.
    #[must_use]
    pub fn modules(self) -> Option<PathBuf> {
        (self == Self::Debian).then(|| asset("COWSLIP_TEST_DEBIAN_MODULES"))
    }
}

/// A Debian root file system as a tar.
#[must_use]
pub fn rootfs_tar() -> PathBuf {
    asset("COWSLIP_TEST_ROOTFS_TAR")
}

fn asset(variable: &str) -> PathBuf {
    present(
        std::env::var_os(variable).map(PathBuf::from),
        variable,
        "source the file that scripts/test-assets prints",
    )
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    let beside = target_directory().map(|target| target.join("debug/cowslip"));
    let named = std::env::var_os("COWSLIP_TEST_BIN").map(PathBuf::from);
    present(
        named.or(beside),
        "COWSLIP_TEST_BIN",
        "cargo build -p cowslip",
    )
}

/// The guest agent, linked statically.
pub(crate) fn agent() -> PathBuf {
    let built = "x86_64-unknown-linux-gnu/agent/cowslip-agent";
    let beside = target_directory().map(|target| target.join(built));
    let named = std::env::var_os("COWSLIP_TEST_AGENT").map(PathBuf::from);
    present(
        named.or(beside),
        "COWSLIP_TEST_AGENT",
        "scripts/build-agent",
    )
}

/// `target`, from `target/debug/deps/suite-…`.
fn target_directory() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    Some(exe.ancestors().nth(3)?.to_owned())
}

fn present(path: Option<PathBuf>, variable: &str, mend: &str) -> PathBuf {
    match path {
        Some(path) if Path::exists(&path) => path,
        Some(path) => panic!("{variable}: \"{}\" is not there; {mend}", path.display()),
        None => panic!("{variable} is not set; {mend}"),
    }
}
