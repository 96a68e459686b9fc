//! The monitor program: where it is and which version.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::process::Command;

use crate::VmmError;

/// The program's name on the PATH.
const NAME: &str = "qemu-system-x86_64";

/// The oldest QEMU that has the machine type, the block commands and the events used here.
const OLDEST: Version = Version {
    major: 7,
    minor: 2,
    micro: 0,
};

/// A QEMU version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number: a year's releases.
    pub major: u32,
    /// Second number: one release.
    pub minor: u32,
    /// Third number: its repairs.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a version of three numbers")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let error = || VersionError(text.chars().take(40).collect());
        let numbers: Vec<u32> = text
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| error())?;
        match numbers[..] {
            [major, minor, micro] => Ok(Self {
                major,
                minor,
                micro,
            }),
            _ => Err(error()),
        }
    }
}

/// A usable monitor program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) version: Version,
}

fn unusable(program: &Path, why: impl fmt::Display) -> VmmError {
    VmmError::Unusable {
        program: program.display().to_string(),
        why: why.to_string(),
    }
}

/// The program at `given`, or the first of its name in `path` (the form of the PATH variable).
pub(super) fn locate(
    given: Option<&Path>,
    path: Option<&std::ffi::OsStr>,
) -> Result<PathBuf, VmmError> {
    if let Some(given) = given {
        return if given.is_absolute() && given.is_file() {
            Ok(given.to_owned())
        } else {
            Err(unusable(
                given,
                "it is not an absolute path of a file: correct the configuration",
            ))
        };
    }
    path.into_iter()
        .flat_map(std::env::split_paths)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(NAME))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            unusable(
                Path::new(NAME),
                "it is not on the PATH: install Debian's package qemu-system-x86",
            )
        })
}

/// Asks the program for its version.
pub(super) async fn inspect(path: PathBuf) -> Result<Program, VmmError> {
    let output = Command::new(&path)
        .arg("--version")
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| unusable(&path, format_args!("starting it failed: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(&text).ok_or_else(|| {
        let said: String = text.chars().take(80).collect();
        unusable(
            &path,
            format_args!("it does not tell its version (it said {said:?})"),
        )
    })?;
    if version < OLDEST {
        return Err(unusable(
            &path,
            format_args!(
                "it is version {version}, and {OLDEST} is the oldest that works: install a newer one"
            ),
        ));
    }
    Ok(Program { path, version })
}

/// From `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
fn parse_version(text: &str) -> Option<Version> {
    text.lines()
        .next()?
        .split_whitespace()
        .find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        let version = |major, minor, micro| {
            Some(Version {
                major,
                minor,
                micro,
            })
        };
        for (text, expected) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright",
                version(7, 2, 22),
            ),
            (
                "QEMU emulator version 10.0.2 (qemu-10.0.2-1.fc42)",
                version(10, 0, 2),
            ),
            ("QEMU emulator version 9.1.0", version(9, 1, 0)),
            ("usage: something else", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = locate(None, Some("/nonexistent:relative".as_ref()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("qemu-system-x86_64") && error.contains("install"),
            "{error}"
        );
        let error = locate(Some(Path::new("/nonexistent/qemu")), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/qemu"), "{error}");
        assert!(locate(Some(Path::new("bin/sh")), None).is_err());
    }

    #[tokio::test]
    async fn a_program_that_is_no_monitor_is_refused() {
        let error = inspect("/bin/true".into()).await.unwrap_err().to_string();
        assert!(error.contains("does not tell its version"), "{error}");
    }
}
