//! Real parts that tests of several crates stand on: programs of others, and what those make.
// This library is only linked into tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A test that is skipped says so.
#![allow(clippy::print_stderr)]

mod listing;
mod registry;

use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

pub use listing::{Listing, list};
pub use registry::Registry;

/// Makes a device of either kind and a pipe: "null", "disk" (with numbers of many bits) and "pipe". For root only.
///
/// # Panics
/// When that fails.
pub fn special_files(directory: &Path) {
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("disk", FileType::BlockDevice, makedev(259, 70_000)),
        ("pipe", FileType::Fifo, 0),
    ] {
        mknodat(CWD, directory.join(name), kind, Mode::from(0o640), device).unwrap();
    }
}

/// Whether a program that a test compares with cannot be used, which is said. Some make owners and devices, for root
/// only.
#[must_use]
pub fn missing(program: &str, needs_root: bool) -> bool {
    let installed = Command::new(program).arg("--version").output().is_ok();
    if !installed {
        eprintln!("SKIPPED: {program} is not installed: install the package {program}");
    } else if needs_root && !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {program} makes owners and devices for root only");
    } else {
        return false;
    }
    true
}

/// Runs a program, one of administrators too, and gives what it writes.
///
/// # Panics
/// When it cannot be run or fails.
pub fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program)
        .env("PATH", path)
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    output.stdout
}
