//! How far a pull is.

use cowslip_image::BlobDigest;

/// Is told how far the layers of an image are. It is called from several threads, often, and must return at once.
pub trait Progress: Send + Sync {
    /// A layer of that many bytes is needed. It may be in the cache already, or on its way for another pull: then only
    /// its end is told.
    fn layer(&self, digest: &BlobDigest, total: u64) {
        let _ = (digest, total);
    }

    /// That many bytes of a layer are there, counted from its beginning; fewer than before where it had to be begun
    /// again.
    fn advance(&self, digest: &BlobDigest, bytes: u64) {
        let _ = (digest, bytes);
    }

    /// A layer is in the cache, and has been checked.
    fn done(&self, digest: &BlobDigest) {
        let _ = digest;
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
