//! What things cost: disk blocks of files and trees, memory of the host, free space.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::HostError;

/// Bytes that `path`, and all below it, occupies on the disk; zero where there is nothing.
///
/// # Errors
/// When a directory cannot be read.
pub fn usage(path: &Path) -> Result<u64, HostError> {
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        other => other.map_err(HostError::path("look at", path))?,
    };
    let mut total = found.blocks().saturating_mul(512);
    if found.is_dir() {
        for entry in std::fs::read_dir(path).map_err(HostError::path("list", path))? {
            total = total.saturating_add(usage(
                &entry.map_err(HostError::path("list", path))?.path(),
            )?);
        }
    }
    Ok(total)
}

/// Space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary user may still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The space of the file system of `path`.
///
/// # Errors
/// When the file system does not tell.
pub fn space(path: &Path) -> Result<Space, HostError> {
    let found =
        rustix::fs::statvfs(path).map_err(HostError::path("ask for the free space of", path))?;
    Ok(Space {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        total: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// Bytes that an ordinary user may still write to the file system of `path`.
///
/// # Errors
/// When the file system does not tell.
pub fn free_space(path: &Path) -> Result<u64, HostError> {
    space(path).map(|found| found.free)
}

/// Memory of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What could be used without swapping.
    pub available: u64,
}

/// Reads `/proc/meminfo`.
///
/// # Errors
/// When it cannot be read.
pub fn memory() -> Result<Memory, HostError> {
    let path = Path::new("/proc/meminfo");
    let text = std::fs::read_to_string(path).map_err(HostError::path("read", path))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024))
    };
    Ok(Memory {
        total: field("MemTotal:"),
        available: field("MemAvailable:"),
    })
}
