//! What `scripts/test-assets` makes, and the programs under test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{VmError, output, target};
use crate::root;

/// The machine's own parts.
const VM: [&str; 2] = ["COWSLIP_TEST_VM_ROOT", "COWSLIP_TEST_VM_MODULES"];
/// What tests in the machine want. The kernel lies in the tree of its modules.
const GUESTS: [&str; 5] = [
    "COWSLIP_TEST_ROOTFS_TAR",
    "COWSLIP_TEST_DEBIAN_MODULES",
    "COWSLIP_TEST_DEBIAN_VMLINUZ",
    "COWSLIP_TEST_GUEST_BZIMAGE",
    "COWSLIP_TEST_GUEST_VMLINUX",
];

/// Monitors that no package has, with the variables that name them. Tests that want one and find none
/// say that they skip.
const MONITORS: [&str; 2] = ["COWSLIP_FIRECRACKER", "COWSLIP_JAILER"];

/// Paths of assets, by the variables that name them.
pub(super) struct Assets(BTreeMap<String, PathBuf>);

impl Assets {
    /// From the environment where that names all; else makes what is missing.
    pub(super) fn find() -> Result<Self, VmError> {
        let named = |name: &&str| {
            let path = std::env::var_os(name).filter(|path| !path.is_empty())?;
            Some(((*name).to_owned(), PathBuf::from(path)))
        };
        let all = VM.iter().chain(&GUESTS);
        let found: BTreeMap<_, _> = all.clone().filter_map(named).collect();
        if found.len() == all.count() {
            return Ok(Self(found));
        }
        let script = root().join("scripts/test-assets");
        let file = output(Command::new(&script).stderr(Stdio::inherit()))?;
        let file = String::from_utf8_lossy(&file).trim().to_owned();
        // Only the shell that quoted the values can be trusted to read them.
        let text = output(Command::new("bash").args(["-c", ". \"$1\" && env -0", "bash", &file]))?;
        Ok(Self(variables(&String::from_utf8_lossy(&text))))
    }

    /// Where an asset is.
    pub(super) fn path(&self, name: &'static str) -> Result<&Path, VmError> {
        let path = self.0.get(name).ok_or(VmError::NoAsset(name))?;
        Ok(path)
    }

    /// What guests in the machine need, with the variables that name it.
    pub(super) fn guests(&self) -> Result<Vec<(String, PathBuf)>, VmError> {
        let named = |name| Ok((String::from(name), self.path(name)?.to_owned()));
        GUESTS.into_iter().map(named).collect()
    }
}

/// The monitors that the environment names, with their variables.
pub(super) fn monitors() -> Result<Vec<(String, PathBuf)>, VmError> {
    let named = MONITORS.into_iter().filter_map(|name| {
        let path = std::env::var_os(name).filter(|path| !path.is_empty())?;
        Some((name, PathBuf::from(path)))
    });
    named
        .map(|(name, path)| {
            if path.is_absolute() && path.is_file() {
                Ok((name.to_owned(), path))
            } else {
                Err(VmError::NoMonitor { name, path })
            }
        })
        .collect()
}

fn variables(text: &str) -> BTreeMap<String, PathBuf> {
    text.split('\0')
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("COWSLIP_TEST_"))
        .map(|(name, value)| (name.to_owned(), PathBuf::from(value)))
        .collect()
}

/// The directory with the program under test and the static agent beside it. Tests want what the
/// sources say, so it is built; a command takes what is there, if anything.
pub(super) fn programs(build: bool) -> Result<Option<PathBuf>, VmError> {
    if let Some(program) = std::env::var_os("COWSLIP_TEST_BIN").map(PathBuf::from) {
        return Ok(program.parent().map(Path::to_owned));
    }
    let program = target().join("debug/cowslip");
    let agent = if build {
        super::nextest::cargo(&["build", "--package", "cowslip"])?;
        let script = root().join("scripts/build-agent");
        let path = output(Command::new(script).stderr(Stdio::inherit()))?;
        PathBuf::from(String::from_utf8_lossy(&path).trim())
    } else {
        let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        target().join(machine).join("agent/cowslip-agent")
    };
    let stage = target().join("test-bin");
    fs::create_dir_all(&stage).map_err(VmError::file("make", &stage))?;
    for (from, name) in [(program, "cowslip"), (agent, "cowslip-agent")] {
        if build || from.exists() {
            replace(&from, &stage.join(name))?;
        }
    }
    Ok(Some(stage))
}

/// Puts `from` in the place of `to`, which may be running.
fn replace(from: &Path, to: &Path) -> Result<(), VmError> {
    let new = to.with_extension("new");
    // What an interrupted run left.
    let _ = fs::remove_file(&new);
    if fs::hard_link(from, &new).is_err() {
        fs::copy(from, &new).map_err(VmError::file("copy", from))?;
    }
    fs::rename(&new, to).map_err(VmError::file("publish", to))?;
    // Where it was the same file already, a rename does nothing.
    let _ = fs::remove_file(&new);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_of_tests_are_assets() {
        let found = variables("PATH=/bin\0COWSLIP_TEST_A=/a b=c\0COWSLIP_CACHE=/x\0");
        let expected = BTreeMap::from([("COWSLIP_TEST_A".to_owned(), PathBuf::from("/a b=c"))]);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_program_is_replaced_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for content in ["one", "one", "two"] {
            // As cargo does: another file of the same name.
            let _ = fs::remove_file(&from);
            fs::write(&from, content).unwrap();
            for _ in 0..2 {
                replace(&from, &to).unwrap();
                assert_eq!(fs::read_to_string(&to).unwrap(), content);
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_asset_without_a_name_is_an_error() {
        let assets = Assets(BTreeMap::new());
        let error = assets.path("COWSLIP_TEST_VM_ROOT").unwrap_err();
        assert!(error.to_string().contains("COWSLIP_TEST_VM_ROOT"));
    }
}
