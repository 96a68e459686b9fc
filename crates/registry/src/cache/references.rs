//! What an image was when it was pulled last, for each platform.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use cowslip_image::{BlobDigest, Descriptor, Platform};
use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, failed};
use crate::reference::Reference;

/// No record is longer, in bytes.
const MAX_RECORD: u64 = 4096;

/// What a reference led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) reference: Reference,
    pub(crate) platform: Platform,
    /// Of the manifest, or of the index of all platforms.
    pub(crate) media_type: String,
    pub(crate) digest: BlobDigest,
    /// In bytes.
    pub(crate) size: u64,
}

impl Record {
    pub(crate) fn root(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest.clone(), self.size)
    }
}

impl Cache {
    pub(super) fn record_path(&self, reference: &Reference, platform: &Platform) -> PathBuf {
        // A digest, for names of images have slashes.
        let name = BlobDigest::of(format!("{reference}\n{platform}").as_bytes());
        self.references_directory().join(name.hex())
    }

    /// What a reference led to last. A damaged record is none: it can be had again.
    pub(crate) fn record(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<Record>, CacheError> {
        let path = self.record_path(reference, platform);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_RECORD).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        }
        let record: Option<Record> = serde_json::from_slice(&bytes).ok();
        Ok(record.filter(|found| found.reference == *reference && found.platform == *platform))
    }

    /// Notes what a reference led to. It is not synced: a record that a crash took is had again.
    pub(crate) fn note(&self, record: &Record) -> Result<(), CacheError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.record_path(&record.reference, &record.platform);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("record-{}-{number}", std::process::id());
        let partial = self.partial_directory().join(name);
        let bytes = serde_json::to_vec(record).map_err(failed("write", &path))?;
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&partial)
            .and_then(|mut file| file.write_all(&bytes));
        let published = written.and_then(|()| fs::rename(&partial, &path));
        published.map_err(|error| {
            let _ = fs::remove_file(&partial);
            failed("write", &path)(error)
        })
    }
}
