//! Test programs, built here: an archive where cargo-nextest is installed, else the programs
//! themselves.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{VmError, output};

fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs cargo; what it says is for the user.
pub(super) fn cargo(words: &[&str]) -> Result<(), VmError> {
    let mut command = Command::new(cargo_program());
    command.args(words).current_dir(crate::root());
    // A product of ours may be all that stdout is for.
    command.stderr(Stdio::inherit());
    output(&mut command).map(drop)
}

/// Where cargo-nextest is.
pub(super) fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".cargo"))
        });
    std::env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .map(|directory| directory.join("cargo-nextest"))
        .find(|program| program.is_file())
}

/// Builds the tests of `packages` into an archive at `path`.
pub(super) fn archive(packages: &[String], path: &Path) -> Result<(), VmError> {
    let file = path.display().to_string();
    let mut words = vec![
        "nextest",
        "archive",
        "--profile",
        "vm",
        "--archive-file",
        &file,
    ];
    // It is read once, by a slow machine.
    words.extend(["--zstd-level", "1"]);
    for package in packages {
        words.extend(["--package", package]);
    }
    cargo(&words)
}

/// Builds the test programs of `packages`; gives their paths.
pub(super) fn programs(packages: &[String]) -> Result<Vec<PathBuf>, VmError> {
    let mut command = Command::new(cargo_program());
    command.args(["test", "--quiet", "--no-run", "--message-format=json"]);
    for package in packages {
        command.args(["--package", package]);
    }
    command.current_dir(crate::root()).stderr(Stdio::inherit());
    let text = output(&mut command)?;
    Ok(executables(&String::from_utf8_lossy(&text)))
}

fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_taken() {
        let messages = r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/t/suite-1"}
{"reason":"compiler-artifact","profile":{"test":false},"executable":"/t/program"}
{"reason":"compiler-artifact","profile":{"test":true},"executable":null}
{"reason":"build-finished","success":true}
no json"#;
        assert_eq!(executables(messages), [PathBuf::from("/t/suite-1")]);
    }
}
