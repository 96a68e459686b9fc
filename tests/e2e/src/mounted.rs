//! File systems that tests mount: a small one that can run full, and one in an image.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system; unmounted when dropped. Only root can mount one.
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

    /// The file system in an image, for reading; none, which is said, where no image can be mounted.
    ///
    /// # Panics
    /// When `mount` cannot be run.
    #[must_use]
    pub fn image(image: &Path, at: &Path) -> Option<Self> {
        let output = Command::new("mount")
            .args(["-o", "ro,loop"])
            .args([image, at])
            .output()
            .unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            eprintln!("no image can be mounted here: {}", said.trim_end());
            return None;
        }
        Some(Self(at.to_owned()))
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
