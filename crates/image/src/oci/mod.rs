//! Images as a source: documents, blobs and platforms.
//!
//! ```text
//!  OCI layout ────────── BlobDirectory ─┐
//!  the same as a tar ─── Archive ───────┼─ Blobs ─ index → manifest → config ─┐
//!  a registry's cache ── Blobs ─────────┘  (select)                           ├─ Image: config, layers
//!  docker save ───────── Archive ── manifest.json → config, member names ─────┘
//! ```
//!
//! An image is read in two steps. Making an [`Image`] reads the documents only, each bounded and checked
//! against its digest. [`crate::import_image`] reads the layers, and checks each while it is read:
//! its size and digest as it is stored, and the digest of what it decompresses to.
//!
//! Nothing here writes to the host, and no name from an image becomes a path of the host: blobs are
//! opened by digests, which are hexadecimal digits.

mod archive;
mod blobs;
mod config;
mod digest;
mod docker;
mod documents;
mod error;
mod image;
mod platform;
mod select;

pub use archive::Archive;
pub use blobs::{BlobDirectory, Blobs};
pub use config::ImageConfig;
pub(crate) use digest::Checked;
pub use digest::{BlobDigest, Hasher, ParseBlobDigestError};
pub use documents::{Descriptor, MANIFEST_TYPES, MAX_DOCUMENT};
pub(crate) use documents::{Expected, OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST};
pub use error::ImageError;
pub use image::{Image, Layer};
pub use platform::{ParsePlatformError, Platform};
