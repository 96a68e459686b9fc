//! Files and directories that are to appear in the machine under the paths they have here.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::VmError;

/// A file system's block, in bytes: what the smallest file takes.
const BLOCK: u64 = 4096;

/// What the workspace holds, without what cargo built and what git keeps.
pub(super) fn workspace() -> Result<Vec<PathBuf>, VmError> {
    let root = crate::root();
    let listed = fs::read_dir(&root).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = listed.map_err(VmError::file("list", &root))?;
    let paths = entries.iter().map(fs::DirEntry::path);
    Ok(paths.filter(|path| is_source(path)).collect())
}

fn is_source(path: &Path) -> bool {
    let built = path.ends_with("target") || path.join("CACHEDIR.TAG").exists();
    !built && !path.ends_with(".git")
}

/// Paths that none of the others holds.
pub(super) fn outermost(mut places: Vec<PathBuf>) -> Vec<PathBuf> {
    places.sort();
    places.dedup();
    let mut kept: Vec<PathBuf> = Vec::new();
    for place in places {
        // In this order what holds a path comes before it.
        if !kept.iter().any(|other| place.starts_with(other)) {
            kept.push(place);
        }
    }
    kept
}

/// Calls `visit` for a place and all that is in it, outer ones first.
fn walk(
    place: &Path,
    visit: &mut impl FnMut(&Path, &Metadata) -> Result<(), VmError>,
) -> Result<(), VmError> {
    let found = fs::symlink_metadata(place).map_err(VmError::file("look at", place))?;
    visit(place, &found)?;
    if !found.is_dir() {
        return Ok(());
    }
    let listed = fs::read_dir(place).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = listed.map_err(VmError::file("list", place))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if is_source(&path) {
            walk(&path, visit)?;
        }
    }
    Ok(())
}

/// What these places hold, by names, sizes and times: as make would tell whether they changed.
pub(super) fn key(places: &[PathBuf]) -> Result<String, VmError> {
    let mut hash = Sha256::new();
    for place in places {
        walk(place, &mut |path, found| {
            let path = path.as_os_str().as_encoded_bytes();
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path);
            for number in [
                found.size().cast_signed(),
                found.mtime(),
                found.mtime_nsec(),
            ] {
                hash.update(number.to_le_bytes());
            }
            Ok(())
        })?;
    }
    Ok(hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Puts a place below `files`, by hard links where they can be, since these are hundreds of megabytes.
/// Gives how many bytes it takes.
pub(super) fn place(place: &Path, files: &Path) -> Result<u64, VmError> {
    let mut bytes = 0;
    let below = |path: &Path| files.join(path.strip_prefix("/").unwrap_or(path));
    if let Some(parent) = below(place).parent() {
        fs::create_dir_all(parent).map_err(VmError::file("make", parent))?;
    }
    walk(place, &mut |path, found| {
        let to = below(path);
        bytes += found.size().next_multiple_of(BLOCK) + BLOCK;
        if found.is_dir() {
            fs::create_dir_all(&to).map_err(VmError::file("make", &to))
        } else if found.is_symlink() {
            let target = fs::read_link(path).map_err(VmError::file("read", path))?;
            symlink(target, &to).map_err(VmError::file("make", &to))
        } else if fs::hard_link(path, &to).is_ok() {
            Ok(())
        } else {
            fs::copy(path, &to)
                .map(drop)
                .map_err(VmError::file("copy", path))
        }
    })?;
    Ok(bytes)
}

/// Writes a program.
pub(super) fn program(path: &Path, text: &str) -> Result<(), VmError> {
    fs::write(path, text).map_err(VmError::file("write", path))?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).map_err(VmError::file("make executable", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_another_comes_with_it() {
        let paths = ["/a/b", "/c", "/a", "/a-b", "/c"].map(PathBuf::from);
        let expected = ["/a", "/a-b", "/c"].map(PathBuf::from);
        assert_eq!(outermost(paths.to_vec()), expected);
    }

    #[test]
    fn the_key_follows_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/file"), "one").unwrap();
        let places = [dir.path().to_owned()];
        let first = key(&places).unwrap();
        assert_eq!(first, key(&places).unwrap());
        fs::write(at("sub/file"), "longer").unwrap();
        let second = key(&places).unwrap();
        assert_ne!(first, second);
        fs::rename(at("sub/file"), at("sub/other")).unwrap();
        assert_ne!(second, key(&places).unwrap());
    }

    #[test]
    fn a_place_is_carried_without_what_cargo_built() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("target")).unwrap();
        fs::create_dir(from.join("built")).unwrap();
        fs::create_dir(from.join(".git")).unwrap();
        fs::write(from.join("built/CACHEDIR.TAG"), "").unwrap();
        fs::write(from.join("file"), "content").unwrap();
        symlink("file", from.join("link")).unwrap();
        let files = dir.path().join("files");
        let bytes = place(&from, &files).unwrap();
        assert!(bytes >= 2 * BLOCK, "{bytes}");
        let inside = files.join(from.strip_prefix("/").unwrap());
        assert_eq!(fs::read_to_string(inside.join("link")).unwrap(), "content");
        for other in ["target", "built", ".git"] {
            assert!(!inside.join(other).exists(), "{other}");
        }
    }
}
