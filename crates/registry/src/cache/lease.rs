//! Blobs in use: they stay in the cache.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use cowslip_image::{BlobDigest, BlobDirectory, Blobs, Hasher, ImageError};

use super::{Cache, CacheError, failed};

/// One blob in use.
#[derive(Debug)]
pub(crate) struct Held {
    digest: BlobDigest,
    /// Locked, for as long as it is open.
    file: File,
    size: u64,
}

impl Held {
    pub(super) fn new(digest: BlobDigest, file: File, size: u64) -> Self {
        Self { digest, file, size }
    }

    /// Its length, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads it, and says whether it is what its digest says.
    pub(super) fn is_sound(&self, cache: &Cache) -> Result<bool, CacheError> {
        let path = cache.blob_path(&self.digest);
        let mut hasher = Hasher::like(&self.digest);
        let (mut offset, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            // By offset: the file's own position belongs to nobody.
            match self.file.read_at(&mut buffer, offset) {
                Ok(0) => return Ok(hasher.finish() == self.digest),
                Ok(got) => {
                    hasher.update(&buffer[..got]);
                    offset += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", &path)(error)),
            }
        }
    }
}

/// The blobs of an image stay in the cache until this, its clones and the image are dropped.
#[derive(Debug, Clone)]
pub struct Lease {
    cache: Cache,
    held: Arc<Mutex<HashMap<BlobDigest, Held>>>,
}

impl Lease {
    pub(crate) fn new(cache: Cache) -> Self {
        Self {
            cache,
            held: Arc::default(),
        }
    }

    pub(crate) fn add(&self, held: Held) {
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // The newer one counts: the other may have been found damaged and taken out.
        all.insert(held.digest.clone(), held);
    }

    /// Takes a blob into use that is there.
    pub(crate) fn hold(&self, digest: &BlobDigest) -> Result<bool, CacheError> {
        let held = self.cache.hold(digest)?;
        Ok(held.map(|held| self.add(held)).is_some())
    }

    /// Reads all its blobs, and takes those out of the cache whose content is not what they were downloaded with: for
    /// when an import finds one to be damaged, so that the next pull gets it again. Gives their digests. It takes as
    /// long as reading the image.
    ///
    /// # Errors
    /// When a blob cannot be read or removed.
    pub fn discard_damaged(&self) -> Result<Vec<BlobDigest>, CacheError> {
        let all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut damaged = Vec::new();
        for held in all.values() {
            if !held.is_sound(&self.cache)? {
                self.cache.discard(&held.digest)?;
                damaged.push(held.digest.clone());
            }
        }
        Ok(damaged)
    }
}

/// The cache as an image sees it: what it opens is in use from then on.
pub(crate) struct View {
    lease: Lease,
    directory: BlobDirectory,
}

impl View {
    pub(crate) fn new(lease: &Lease) -> Result<Self, ImageError> {
        Ok(Self {
            lease: lease.clone(),
            directory: BlobDirectory::open(&lease.cache.blobs())?,
        })
    }
}

impl Blobs for View {
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn Read + '_>>> {
        match self.lease.hold(digest).map_err(io::Error::other)? {
            true => self.directory.open(digest),
            false => Ok(None),
        }
    }
}
