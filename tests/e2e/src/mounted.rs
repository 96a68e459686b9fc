//! A small file system that can run full.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A tmpfs; unmounted when dropped. Only root can make one.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// One of this size ("48m") over the directory `at`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn new(at: &Path, size: &str) -> Self {
        let options = format!("size={size},mode=0700");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "cowslip-e2e"])
            .arg(at)
            .status();
        assert!(status.unwrap().success());
        Self(at.to_owned())
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// When it cannot be.
    pub fn resize(&self, size: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,size={size}")])
            .arg(&self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(std::thread::panicking() || status.unwrap().success());
    }
}
