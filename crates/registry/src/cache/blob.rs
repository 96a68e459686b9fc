//! A whole blob: found, used, and taken out again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::SystemTime;

use cowslip_image::BlobDigest;
use rustix::fs::OFlags;

use super::{Cache, CacheError, Held, failed, is_at};

impl Cache {
    /// Takes a blob into use; `None` when it is not there.
    pub(crate) fn hold(&self, digest: &BlobDigest) -> Result<Option<Held>, CacheError> {
        let path = self.blob_path(digest);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        loop {
            let file = match File::options().read(true).custom_flags(flags).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("open", &path)(error)),
            };
            // Who has it exclusively is about to let go of it, or to remove it.
            file.lock_shared().map_err(failed("lock", &path))?;
            if !is_at(&file, &path).map_err(failed("look at", &path))? {
                continue;
            }
            file.set_modified(SystemTime::now())
                .map_err(failed("mark as used", &path))?;
            let size = file.metadata().map_err(failed("look at", &path))?.len();
            return Ok(Some(Held::new(digest.clone(), file, size)));
        }
    }

    /// Takes a blob out if it is damaged; says whether it was. An image that tells a wrong size of a blob must not cost
    /// others the blob, so it is read.
    pub(crate) fn discard_damaged(&self, digest: &BlobDigest) -> Result<bool, CacheError> {
        match self.hold(digest)? {
            Some(held) if !held.is_sound(self)? => self.discard(digest).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Takes a blob out; who uses it has it open.
    pub(super) fn discard(&self, digest: &BlobDigest) -> Result<(), CacheError> {
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove the damaged", &path)(error))
            }
            _ => Ok(()),
        }
    }
}
