//! Directories of attributes, in sysfs and as copies.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::directory::remove_tree;
use crate::error::HostError;

/// What an attribute says; none where there is none, or it is empty.
pub(super) fn attribute(directory: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(directory.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The names of a directory's entries; none where there is no such directory.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, HostError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(HostError::path("list", directory))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HostError::path("list", directory))?;
        all.extend(entry.file_name().into_string());
    }
    Ok(all)
}

/// The numbers of the entries `<name><number>`.
pub(super) fn numbered(directory: &Path, name: &str) -> Result<Vec<u32>, HostError> {
    let all = names(directory)?;
    let digits = all.iter().filter_map(|entry| entry.strip_prefix(name));
    Ok(digits.filter_map(|digits| digits.parse().ok()).collect())
}

/// Makes `copy` of `directory` with `values` added, which every process may read.
pub(super) fn copy_with(
    directory: &Path,
    copy: &Path,
    values: &[(&'static str, String)],
) -> Result<(), HostError> {
    remove_tree(copy)?;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(copy);
    made.map_err(HostError::path("make the directory", copy))?;
    set_mode(copy, 0o755)?;
    let entries = std::fs::read_dir(directory).map_err(HostError::path("list", directory))?;
    for entry in entries {
        let entry = entry.map_err(HostError::path("list", directory))?;
        let name = entry.file_name();
        if values.iter().any(|(added, _)| name == *added) {
            continue;
        }
        // Attributes that cannot be read (some can only be written) are of no use to a reader.
        if let Ok(bytes) = std::fs::read(entry.path()) {
            write(&copy.join(name), &bytes)?;
        }
    }
    for (name, value) in values {
        write(&copy.join(name), format!("{value}\n").as_bytes())?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), HostError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path);
    opened
        .and_then(|mut file| file.write_all(bytes))
        .map_err(HostError::path("write", path))?;
    set_mode(path, 0o444)
}

/// Whatever this process' umask says.
fn set_mode(path: &Path, mode: u32) -> Result<(), HostError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(HostError::path("set the mode of", path))
}
