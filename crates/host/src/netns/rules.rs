//! Rules, by nft(8): its scripts are one transaction each.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
    begin(script)?.finish()
}

/// An nft at work.
pub(super) struct Loading {
    child: Child,
    written: std::io::Result<()>,
}

/// What is left of a script for a namespace that is new: nothing is there that it has to take away first. The kernel waits
/// for all processors where a transaction deletes a table, be it one of its own.
pub(super) fn for_new(script: &str) -> &str {
    let rest = || {
        let (table, rest) = script.split_once('\n')?;
        let rest = rest.strip_prefix("delete ")?.strip_prefix(table)?;
        rest.strip_prefix('\n')
    };
    rest().unwrap_or(script)
}

/// Begins to load a script into this thread's namespace. To be waited for, whatever fails meanwhile.
pub(super) fn begin(script: &str) -> Result<Loading, HostError> {
    let path = nft().ok_or(HostError::NoNft)?;
    start(&path, script).map_err(|source| HostError::Rules { source })
}

impl Loading {
    /// Waits until the rules are there, or refused.
    pub(super) fn finish(self) -> Result<(), HostError> {
        self.end().map_err(|source| HostError::Rules { source })
    }

    fn end(self) -> std::io::Result<()> {
        let output = self.child.wait_with_output()?;
        if output.status.success() {
            return self.written;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().next().unwrap_or("nft said nothing").to_owned();
        Err(std::io::Error::other(line))
    }
}

fn start(path: &Path, script: &str) -> std::io::Result<Loading> {
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
    Ok(Loading { child, written })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_deleted_where_nothing_is() {
        let table = "table inet t {\n\tcounter c { }\n}\n";
        let replacing = format!("table inet t\ndelete table inet t\n{table}");
        assert_eq!(for_new(&replacing), table);
        assert_eq!(for_new(table), table);
        let other = format!("table inet u\ndelete table inet t\n{table}");
        assert_eq!(for_new(&other), other);
        assert_eq!(for_new(""), "");
    }
}
