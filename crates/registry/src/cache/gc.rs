//! What is used least goes when there is too much.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cowslip_image::BlobDigest;

use super::{Cache, CacheError, Record, failed, is_at};

/// A download that nobody went on with for this long is given up.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// What was collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs and stale downloads.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What blobs are left, in bytes: more than the limit only where they are in use.
    pub left: u64,
}

struct Blob {
    path: PathBuf,
    used: SystemTime,
    size: u64,
}

impl Cache {
    /// Removes blobs, the one that was not used for longest first, until they have no more than `limit` bytes together.
    /// What is in use stays, in whatever process. Downloads that nobody went on with for a day go too, and what is
    /// known of images that are gone. It may wait for the disk.
    ///
    /// # Errors
    /// When the cache cannot be read, or something cannot be removed.
    pub fn gc(&self, limit: u64) -> Result<Collected, CacheError> {
        let mut collected = Collected::default();
        let mut blobs = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            for (path, stat) in files(&self.blobs().join(algorithm))? {
                let used = stat.modified().map_err(failed("look at", &path))?;
                let size = stat.len();
                blobs.push(Blob { path, used, size });
            }
        }
        blobs.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        collected.left = blobs.iter().map(|blob| blob.size).sum();
        for blob in blobs {
            if collected.left <= limit {
                break;
            }
            if remove_unused(&blob.path, |stat| stat.modified().ok() == Some(blob.used))? {
                collected.left -= blob.size;
                collected.bytes += blob.size;
                collected.files += 1;
            }
        }
        self.remove_stale(&mut collected)?;
        self.remove_records()?;
        Ok(collected)
    }

    fn remove_stale(&self, collected: &mut Collected) -> Result<(), CacheError> {
        let is_stale = |stat: &fs::Metadata| {
            let age = stat.modified().ok().and_then(|time| time.elapsed().ok());
            age.is_some_and(|age| age > STALE)
        };
        for (path, stat) in files(&self.partial_directory())? {
            if is_stale(&stat) && remove_unused(&path, is_stale)? {
                collected.files += 1;
                collected.bytes += stat.len();
            }
        }
        Ok(())
    }

    /// Removes what is known of images whose first document is gone.
    fn remove_records(&self) -> Result<(), CacheError> {
        for (path, _) in files(&self.references_directory())? {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("read", &path)(error)),
            };
            let digest: Option<BlobDigest> = serde_json::from_slice::<Record>(&bytes)
                .ok()
                .map(|record| record.digest);
            if digest.is_none_or(|digest| !self.blob_path(&digest).exists()) {
                gone(fs::remove_file(&path)).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// The regular files of a directory.
fn files(directory: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>, CacheError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        match entry.metadata() {
            Ok(stat) if stat.is_file() => found.push((entry.path(), stat)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("look at", &entry.path())(error));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Removes a file that nobody has locked, if it is still as it was: whoever used it since has changed its time.
fn remove_unused(
    path: &Path,
    unchanged: impl FnOnce(&fs::Metadata) -> bool,
) -> Result<bool, CacheError> {
    let Some(file) = gone(File::open(path)).map_err(failed("open", path))? else {
        return Ok(false);
    };
    if file.try_lock().is_err() {
        return Ok(false);
    }
    let is_there = is_at(&file, path).map_err(failed("look at", path))?;
    let stat = file.metadata().map_err(failed("look at", path))?;
    if !is_there || !unchanged(&stat) {
        return Ok(false);
    }
    gone(fs::remove_file(path)).map_err(failed("remove", path))?;
    Ok(true)
}

fn gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
