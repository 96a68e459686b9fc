//! The monitor program: where it is, which version, and what it boots.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cowslip_host::kvm::Kvm;
use tokio::process::Command;

use crate::VmmError;

/// The program's name on the PATH.
pub(super) const NAME: &str = "firecracker";
/// The jailer's.
pub(super) const JAILER: &str = "jailer";
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

/// What a machine is started with.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) firecracker: Program,
    /// None: in direct mode.
    pub(super) jailer: Option<Program>,
}

pub(super) fn unusable(program: &Path, why: impl fmt::Display) -> VmmError {
    VmmError::Unusable {
        program: program.display().to_string(),
        why: why.to_string(),
    }
}

/// The program at `given`, or the first called `name` in `path` (the form of the PATH variable).
pub(super) fn locate(
    name: &str,
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
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            unusable(
                Path::new(name),
                format_args!(
                    "it is not on the PATH: put a release of Firecracker there, or name it with \
                     COWSLIP_{}",
                    name.to_uppercase()
                ),
            )
        })
}

/// Asks the program called `name` for its version.
pub(super) async fn inspect(name: &str, path: PathBuf) -> Result<Program, VmmError> {
    let output = Command::new(&path)
        .arg("--version")
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| unusable(&path, format_args!("starting it failed: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(name, &text).ok_or_else(|| {
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
fn parse_version(name: &str, text: &str) -> Option<Version> {
    let own = |line: &str| {
        let (first, rest) = line.split_once(" v")?;
        let is_own = first.eq_ignore_ascii_case(name);
        is_own.then(|| rest.trim().parse().ok()).flatten()
    };
    text.lines().find_map(own)
}

/// Says beside what is missing how to do without a jail.
pub(super) fn or_direct(error: VmmError) -> VmmError {
    match error {
        VmmError::Unusable { program, why } => VmmError::Unusable {
            program,
            why: format!(
                "{why}; or, to run Firecracker without a jail, as the engine's user, set isolation = \
                 \"direct\" in the configuration's [machine]"
            ),
        },
        other => other,
    }
}

/// In its jail a program finds no libraries.
pub(super) fn require_static(program: &Program) -> Result<(), VmmError> {
    let path = &program.path;
    let found = File::open(path).and_then(|file| interpreter(&file));
    match found {
        Ok(false) => Ok(()),
        Ok(true) => Err(unusable(
            path,
            "it is linked to shared libraries, which it does not find in its jail: use the release's \
             binary, or set isolation = \"direct\" in the configuration's [machine]",
        )),
        Err(source) => Err(VmmError::File {
            operation: "read the program",
            path: path.clone(),
            source,
        }),
    }
}

/// Whether a 64-bit ELF program asks for an interpreter, which loads shared libraries.
fn interpreter(file: &File) -> std::io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    if header[..4] != ELF_MAGIC {
        return Ok(false);
    }
    let half = |at: usize| u64::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let table = u64::from_ne_bytes(std::array::from_fn(|index| header[32 + index]));
    let (size, count) = (half(54), half(56));
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, table.saturating_add(index * size))?;
        if u32::from_ne_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Firecracker runs nothing without KVM.
pub(super) fn require_kvm() -> Result<(), VmmError> {
    match Kvm::look().obstacle() {
        None => Ok(()),
        Some(why) => Err(unusable(
            Path::new(NAME),
            format_args!("{why}, or use QEMU"),
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
        let version = |text: &str| parse_version(NAME, text).map(|version| version.to_string());
        assert_eq!(
            version("Firecracker v1.16.1\n\n").as_deref(),
            Some("1.16.1")
        );
        let text = "Firecracker v1.17.0-dev\n\n2026-11-21 [anonymous-instance:main] exiting\n";
        assert_eq!(version(text).as_deref(), Some("1.17.0-dev"));
        assert_eq!(
            parse_version(JAILER, "Jailer v1.16.1\n").map(|version| version.to_string()),
            Some("1.16.1".to_owned())
        );
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
        let error = inspect(NAME, "/bin/true".into()).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("/bin/true") && error.contains("version"),
            "{error}"
        );
        assert!(locate(NAME, Some(Path::new("/nonexistent")), None).is_err());
        let error = locate(NAME, None, None).unwrap_err().to_string();
        assert!(error.contains("COWSLIP_FIRECRACKER"), "{error}");
        let error = locate(JAILER, None, None).unwrap_err().to_string();
        assert!(error.contains("COWSLIP_JAILER"), "{error}");
    }

    #[test]
    fn a_program_with_shared_libraries_is_told_from_one_without() {
        let dynamic = Program {
            path: "/bin/sh".into(),
            version: "1.16.1".parse().unwrap(),
        };
        let error = require_static(&dynamic).unwrap_err().to_string();
        assert!(error.contains("shared libraries"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("static");
        let mut elf = vec![0; 128];
        elf[..4].copy_from_slice(&ELF_MAGIC);
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        std::fs::write(&path, &elf).unwrap();
        let program = Program { path, ..dynamic };
        require_static(&program).unwrap();
        elf[64] = 3;
        std::fs::write(&program.path, &elf).unwrap();
        assert!(require_static(&program).is_err());
    }
}
