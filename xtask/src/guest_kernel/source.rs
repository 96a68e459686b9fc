//! Finds the kernel's source archive.

use std::fs;
use std::path::{Path, PathBuf};

use super::GuestKernelError;

/// Where Debian's `linux-source-*` packages put their archives.
const SOURCE_DIR: &str = "/usr/src";
/// The series that the fragment was written and measured for.
const SERIES: &str = "linux-source-6.12";

/// The archive that was named, or the newest of the series.
pub(super) fn find(named: Option<PathBuf>) -> Result<PathBuf, GuestKernelError> {
    match named {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(GuestKernelError::NoSource(path.display().to_string())),
        None => newest(Path::new(SOURCE_DIR))
            .ok_or_else(|| GuestKernelError::NoSource(format!("{SOURCE_DIR}/{SERIES}.tar.xz"))),
    }
}

fn newest(dir: &Path) -> Option<PathBuf> {
    let is_archive = |path: &PathBuf| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        name.strip_prefix(SERIES)
            .is_some_and(|rest| rest.starts_with('.'))
            && [".tar.xz", ".tar.zst", ".tar.gz"]
                .iter()
                .any(|ending| name.ends_with(ending))
    };
    let entries = fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(is_archive);
    entries.max_by_key(|path| {
        path.metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_archives_of_the_series_count() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "linux-source-6.1.tar.xz",
            "linux-source-6.12",
            "linux-source-6.12.patch.xz",
        ] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(newest(dir.path()), None);
        let archive = dir.path().join("linux-source-6.12.tar.xz");
        fs::write(&archive, b"").unwrap();
        assert_eq!(newest(dir.path()), Some(archive));
    }
}
