//! The programs that a shell would use.

use std::process::{Command, Stdio};

use crate::Failure;

/// Runs a program that must succeed; gives what it said.
pub(crate) fn run(program: &str, words: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new(program);
    let output = command.args(words).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let said = text(&output.stderr);
        Err(format!("{program} {}: {}: {said}", words.join(" "), output.status).into())
    }
}

/// A device of device-mapper that dmsetup made; it goes with this value.
#[derive(Debug)]
pub(crate) struct Mapped(String);

impl Mapped {
    /// Makes one with this table.
    pub(crate) fn new(name: &str, table: &str) -> Result<Self, Failure> {
        run("dmsetup", &["create", name, "--table", table])?;
        Ok(Self(name.to_owned()))
    }

    /// Its node.
    pub(crate) fn node(&self) -> String {
        format!("/dev/mapper/{}", self.0)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Err(failure) = run("dmsetup", &["remove", "--retry", &self.0]) {
            eprintln!("{failure}");
        }
    }
}

/// A loop device that losetup made; it goes with this value.
#[derive(Debug)]
pub(crate) struct Attached(String);

impl Attached {
    /// Attaches one over `path`, with these options.
    pub(crate) fn new(options: &[&str], path: &str) -> Result<Self, Failure> {
        let words = [&["--find", "--show"], options, &[path]].concat();
        Ok(Self(run("losetup", &words)?))
    }

    /// Its node.
    pub(crate) fn node(&self) -> &str {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(failure) = run("losetup", &["--detach", &self.0]) {
            eprintln!("{failure}");
        }
    }
}
