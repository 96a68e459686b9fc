//! Other people's programs for the same kernel objects: what ours are checked against.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Fails a test that was started anywhere but in the test VM.
pub(crate) fn only_in_the_test_vm() {
    let inside = std::env::var_os("COWSLIP_IN_TEST_VM").is_some();
    assert!(inside, "this test changes its host: cargo xtask vm test");
}

/// Runs a program that must succeed; gives what it said.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Says something to dmsetup.
pub(crate) fn dmsetup(words: &[&str]) -> String {
    said(Command::new("dmsetup").args(words))
}

/// Says something to losetup.
pub(crate) fn losetup(words: &[&str]) -> String {
    said(Command::new("losetup").args(words))
}

/// A device of device-mapper that dmsetup made.
#[derive(Debug)]
pub(crate) struct Mapped(String);

impl Mapped {
    /// Makes one with this table.
    pub(crate) fn new(name: &str, table: &str) -> Self {
        let _ = dmsetup(&["create", name, "--table", table]);
        Self(name.to_owned())
    }

    /// Its node.
    pub(crate) fn node(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.0)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let removed = Command::new("dmsetup").args(["remove", &self.0]).output();
        // The first failure of a test is the one to tell.
        if !std::thread::panicking() {
            let removed = removed.unwrap();
            assert!(removed.status.success(), "{removed:?}");
        }
    }
}
