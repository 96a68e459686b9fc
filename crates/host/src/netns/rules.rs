//! Rules, by nft(8): its scripts are one transaction each.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::HostError;

/// Where it may be that is not on everybody's PATH.
const PLACES: [&str; 4] = [
    "/usr/sbin/nft",
    "/sbin/nft",
    "/usr/local/sbin/nft",
    "/usr/bin/nft",
];

/// Where nft is, if it is installed.
#[must_use]
pub(super) fn nft() -> Option<PathBuf> {
    PLACES
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

/// Loads a script into this thread's namespace.
pub(super) fn load(script: &str) -> Result<(), HostError> {
    let path = nft().ok_or(HostError::NoNft)?;
    run(&path, script).map_err(|source| HostError::Rules { source })
}

fn run(path: &Path, script: &str) -> std::io::Result<()> {
    // A child is born into the namespace of the thread that starts it.
    let mut child = Command::new(path)
        .args(["-f", "-"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output()?;
    if output.status.success() {
        return written;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().next().unwrap_or("nft said nothing").to_owned();
    Err(std::io::Error::other(line))
}
