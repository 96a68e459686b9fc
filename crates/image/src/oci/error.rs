//! Why an image cannot be read, in words for the user.

use std::io;
use std::path::PathBuf;

use super::BlobDigest;

/// Why an image cannot be read. What comes from the image is escaped for display.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The source could not be read.
    #[error("cannot {operation} \"{}\"", path.display())]
    Read {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A blob could not be read, or got.
    #[error("cannot read the blob {digest}")]
    ReadBlob {
        /// Which.
        digest: String,
        /// The error of what holds the blobs.
        source: io::Error,
    },
    /// Not what it was said to be.
    #[error("this is no {expected}: {why}")]
    NotAnImage {
        /// `OCI image layout` or `docker archive`.
        expected: &'static str,
        /// What is missing or wrong, and what it may be instead.
        why: String,
    },
    /// A document is not the JSON that it should be.
    #[error("the {document} is damaged: {why}; fetch or make the image again")]
    Document {
        /// Which: its kind, and its digest or name.
        document: String,
        /// What is wrong.
        why: String,
    },
    /// A document is too long.
    #[error("the {document} is longer than {limit} bytes")]
    DocumentTooLong {
        /// Which: its kind, and its digest or name.
        document: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// More of something than an image may have.
    #[error("the image has more than {limit} {what}")]
    TooMany {
        /// The limit.
        limit: u64,
        /// What was counted.
        what: &'static str,
    },
    /// A blob that the image names is not there.
    #[error("the {what} {name} is missing; fetch or make the image again")]
    Missing {
        /// `manifest`, `config`, `layer` …
        what: &'static str,
        /// Its digest, or its name in the archive.
        name: String,
    },
    /// A blob has another size than the image says.
    #[error("the {what} {name} has {found} bytes instead of {expected}; fetch the image again")]
    Size {
        /// `manifest`, `config`, `layer` …
        what: &'static str,
        /// Its digest, or its name in the archive.
        name: String,
        /// What it has, in bytes; one more than expected where it is longer.
        found: u64,
        /// What it should have, in bytes.
        expected: u64,
    },
    /// A blob has other content than the image says.
    #[error("the {what} has digest {found} instead of {expected}; fetch the image again")]
    Digest {
        /// `manifest`, `config`, `layer`, `content of the layer` …
        what: &'static str,
        /// What it hashes to.
        found: BlobDigest,
        /// What it should hash to.
        expected: BlobDigest,
    },
    /// No image of that tag.
    #[error("there is no image \"{tag}\"; there is {available}")]
    NoSuchTag {
        /// The tag asked for.
        tag: String,
        /// What there is.
        available: String,
    },
    /// Several images, and no tag that says which.
    #[error("there are several images; name one of {available}")]
    Ambiguous {
        /// What there is.
        available: String,
    },
    /// No image for that platform.
    #[error("the image is not for {wanted}; it is for {available}")]
    Platform {
        /// The platform asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// A document or layer of a kind that is not read here.
    #[error("the {what} {name} has the unsupported type \"{media_type}\"{hint}")]
    Unsupported {
        /// `manifest`, `layer` …
        what: &'static str,
        /// Its digest.
        name: String,
        /// The media type.
        media_type: String,
        /// What can be done.
        hint: &'static str,
    },
    /// The config does not have one digest for each layer.
    #[error("the image has {layers} layers, but its config has digests of {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Digests in the config.
        diff_ids: usize,
    },
    /// The config has a value that cannot be used.
    #[error("the image's config has an unusable {field}: {why}")]
    Config {
        /// Which: `env`, `user` …
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl ImageError {
    pub(crate) fn document(document: impl Into<String>, why: impl ToString) -> Self {
        Self::Document {
            document: document.into(),
            why: why.to_string(),
        }
    }
}
