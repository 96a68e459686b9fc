//! The machine's disks beside its root: files of ext4, made without mounting anything.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{VmError, output, tree};

/// The scratch disk's size. It is sparse: the machine's `/tmp` is as large as the tests make it.
const SCRATCH: &str = "48G";
/// Room for what is no file's content.
const SLACK: u64 = 32 << 20;
/// Asset images that are kept: one of this checkout, and some of others.
const KEPT: usize = 3;

const ASSETS: &str = "assets-";

/// The disk with `places`, made once for what they hold and kept in `cache`.
pub(super) fn assets(cache: &Path, places: Vec<PathBuf>) -> Result<PathBuf, VmError> {
    let places = tree::outermost(places);
    let image = cache.join(format!("{ASSETS}{}.ext4", tree::key(&places)?));
    if image.exists() {
        // Said for the sake of `forget`; an image that cannot be touched is only forgotten sooner.
        let _ = File::options()
            .append(true)
            .open(&image)
            .and_then(|file| file.set_modified(std::time::SystemTime::now()));
        return Ok(image);
    }
    let work = cache.join(format!(".{ASSETS}{}", std::process::id()));
    let made = with_places(&work, &places, &[]).and_then(|new| {
        fs::rename(&new, &image).map_err(VmError::file("publish", &image))?;
        Ok(image)
    });
    let _ = fs::remove_dir_all(&work);
    forget(cache);
    made
}

/// Removes the asset images that were not used for longest. One in use stays until its machine ends.
fn forget(cache: &Path) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let mut images: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(ASSETS))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    images.sort();
    for (_, path) in images.iter().rev().skip(KEPT) {
        let _ = fs::remove_file(path);
    }
}

/// A disk in `directory` with `places` below `/files`, their list, and files with these names and texts.
pub(super) fn with_places(
    directory: &Path,
    places: &[PathBuf],
    texts: &[(&str, String)],
) -> Result<PathBuf, VmError> {
    let top = directory.join("top");
    let files = top.join("files");
    fs::create_dir_all(&files).map_err(VmError::file("make", &files))?;
    let mut bytes = SLACK;
    for place in places {
        bytes += tree::place(place, &files)?;
    }
    // The workspace is one place however little of it comes, since each costs the machine a moment.
    let root = crate::root();
    let tops = places.iter().map(|place| {
        let inside = place.starts_with(&root);
        if inside { root.clone() } else { place.clone() }
    });
    let list: String = tree::outermost(tops.collect())
        .iter()
        .map(|top| format!("{}\n", top.display()))
        .collect();
    for (name, text) in texts.iter().chain([&("places", list)]) {
        tree::program(&top.join(name), text)?;
    }
    let image = directory.join("disk.ext4");
    let size = format!("{}k", (bytes + bytes / 8) / 1024);
    mke2fs(&image, &size, |command| command.arg("-d").arg(&top))?;
    Ok(image)
}

/// An empty disk to write on.
pub(super) fn scratch(directory: &Path) -> Result<PathBuf, VmError> {
    let image = directory.join("scratch.ext4");
    mke2fs(&image, SCRATCH, |command| {
        command.args(["-E", "lazy_itable_init=1,nodiscard"])
    })?;
    Ok(image)
}

fn mke2fs(
    image: &Path,
    size: &str,
    more: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<(), VmError> {
    let mut command = Command::new("mke2fs");
    // None of these outlives a crash of its machine.
    command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"]);
    output(more(&mut command).arg(image).arg(size)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_the_same_places_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let place = dir.path().join("place");
        fs::create_dir(&cache).unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), "one").unwrap();
        let image = || assets(&cache, vec![place.clone()]).unwrap();
        let first = image();
        assert_eq!(first, image());
        fs::write(place.join("file"), "another").unwrap();
        let second = image();
        assert_ne!(first, second);
        for round in 0..KEPT {
            fs::write(place.join("file"), "x".repeat(100 + round)).unwrap();
            let _ = image();
        }
        assert_eq!(fs::read_dir(&cache).unwrap().count(), KEPT);
        assert!(!first.exists() && !second.exists());
    }
}
