//! The monitor program: where it is, which version, and what it boots.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::process::Command;

use crate::VmmError;

/// The program's name on the PATH.
const NAME: &str = "firecracker";
/// The oldest release whose snapshots can be loaded with another vsock socket.
const OLDEST: (u32, u32) = (1, 16);
/// The first release that boots a bzImage.
const BZIMAGE: (u32, u32) = (1, 17);
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// A Firecracker version: `1.16.1`, `1.17.0-dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number: one release.
    pub minor: u32,
    /// Third number: its repairs.
    pub patch: u32,
    /// Not released yet.
    pub development: bool,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        f.write_str(if self.development { "-dev" } else { "" })
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
        let (numbers, suffix) = text.split_once('-').unwrap_or((text, ""));
        let numbers: Vec<u32> = numbers
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| error())?;
        match numbers[..] {
            [major, minor, patch] => Ok(Self {
                major,
                minor,
                patch,
                development: !suffix.is_empty(),
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
                "it is not on the PATH: put a release of Firecracker there, or name it with \
                 COWSLIP_FIRECRACKER",
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
    if (version.major, version.minor) < OLDEST {
        let (major, minor) = OLDEST;
        return Err(unusable(
            &path,
            format_args!("it is version {version}: {major}.{minor} or later is needed"),
        ));
    }
    Ok(Program { path, version })
}

/// `Firecracker v1.16.1`, on a line of its own.
fn parse_version(text: &str) -> Option<Version> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("Firecracker v")?.trim().parse().ok())
}

/// Firecracker runs nothing without KVM.
pub(super) fn require_kvm() -> Result<(), VmmError> {
    let device = Path::new("/dev/kvm");
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) => Err(unusable(
            Path::new(NAME),
            format_args!(
                "\"{}\" cannot be opened ({error}): load the kvm module and give this user the group \
                 kvm, or use QEMU",
                device.display()
            ),
        )),
    }
}

impl Program {
    /// Refuses a kernel of a format that this release does not boot.
    pub(super) fn boots(&self, kernel: &Path) -> Result<(), VmmError> {
        if (self.version.major, self.version.minor) >= BZIMAGE {
            return Ok(());
        }
        let mut magic = [0; ELF_MAGIC.len()];
        File::open(kernel)
            .and_then(|mut file| file.read_exact(&mut magic))
            .map_err(|source| VmmError::File {
                operation: "read the kernel",
                path: kernel.to_owned(),
                source,
            })?;
        if magic == ELF_MAGIC {
            return Ok(());
        }
        Err(unusable(
            &self.path,
            format_args!(
                "version {} boots only uncompressed kernels and \"{}\" is none: import an ELF vmlinux, \
                 or use version {}.{} or later",
                self.version,
                kernel.display(),
                BZIMAGE.0,
                BZIMAGE.1
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_firecracker_prints() {
        let version = |text: &str| parse_version(text).map(|version| version.to_string());
        assert_eq!(
            version("Firecracker v1.16.1\n\n").as_deref(),
            Some("1.16.1")
        );
        let text = "Firecracker v1.17.0-dev\n\n2026-11-21 [anonymous-instance:main] exiting\n";
        assert_eq!(version(text).as_deref(), Some("1.17.0-dev"));
        for bad in [
            "",
            "Jailer v1.16.1",
            "Firecracker v1.16",
            "Firecracker vx.y.z",
        ] {
            assert_eq!(version(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_old_release_boots_only_uncompressed_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let (elf, other) = (dir.path().join("vmlinux"), dir.path().join("vmlinuz"));
        std::fs::write(&elf, b"\x7fELF and more").unwrap();
        std::fs::write(&other, b"MZ and more").unwrap();
        let program = |version: &str| Program {
            path: "/f".into(),
            version: version.parse().unwrap(),
        };
        program("1.16.1").boots(&elf).unwrap();
        program("1.17.0-dev").boots(&other).unwrap();
        let error = program("1.16.1").boots(&other).unwrap_err().to_string();
        assert!(
            error.contains("vmlinuz") && error.contains("1.17"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_no_firecracker_is_refused() {
        let error = inspect("/bin/true".into()).await.unwrap_err().to_string();
        assert!(
            error.contains("/bin/true") && error.contains("version"),
            "{error}"
        );
        assert!(locate(Some(Path::new("/nonexistent")), None).is_err());
        let error = locate(None, None).unwrap_err().to_string();
        assert!(error.contains("COWSLIP_FIRECRACKER"), "{error}");
    }
}
