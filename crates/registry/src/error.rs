//! Why an image cannot be pulled, in words for the user.

use std::path::PathBuf;

use cowslip_image::{BlobDigest, ImageError};

use crate::cache::CacheError;

/// Why an image cannot be pulled. What comes from a registry is escaped for display.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The registry has no such thing.
    #[error(
        "{registry} has no {what}{}; check the name and the tag",
        said(message)
    )]
    NotFound {
        /// The registry that was asked.
        registry: String,
        /// `image docker.io/library/nothing:latest`, `layer sha256:…`.
        what: String,
        /// What it said itself.
        message: String,
    },
    /// The registry does not give it to this user.
    #[error(
        "{registry} does not give {what} to {who}{}; check the name, or log in with \"docker login {registry}\" or \
         \"skopeo login {registry}\"",
        said(message)
    )]
    Unauthorized {
        /// The registry that was asked.
        registry: String,
        /// What it was asked for.
        what: String,
        /// Who asked: `a user who is not logged in`, `"NAME"`.
        who: String,
        /// What it said itself.
        message: String,
    },
    /// Too much was asked of the registry.
    #[error(
        "{registry} answers no more requests for now{}; try again {}, or log in, or use a mirror",
        said(message), later(retry_after.as_deref())
    )]
    RateLimited {
        /// The registry that was asked.
        registry: String,
        /// Its `Retry-After`: seconds or a date.
        retry_after: Option<String>,
        /// What it said itself.
        message: String,
    },
    /// Another answer than what was asked for.
    #[error(
        "{registry} answers a request for {what} with status {status}{}",
        said(message)
    )]
    Status {
        /// The registry that was asked.
        registry: String,
        /// What it was asked for.
        what: String,
        /// The status of HTTP.
        status: u16,
        /// What it said itself.
        message: String,
    },
    /// An answer that makes no sense.
    #[error("{registry} does not speak as a registry does: {why}")]
    Protocol {
        /// The registry that was asked.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// No connection.
    #[error("cannot reach {registry}; check its name, the network, and HTTPS_PROXY")]
    Unreachable {
        /// The registry that was asked.
        registry: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No secure connection.
    #[error(
        "cannot speak TLS with {registry}; if it has a certificate of your own authority, name that in \
         registries.ca_certificates, and if it has none, name the registry in registries.plain_http"
    )]
    Tls {
        /// The registry that was asked.
        registry: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A connection broke, or stood still, again and again.
    #[error(
        "the connection to {registry} broke while it sent {what}; pull again to go on from there"
    )]
    Broken {
        /// The registry that was asked.
        registry: String,
        /// What it was asked for.
        what: String,
        /// What went wrong the last time.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Other content than was asked for.
    #[error(
        "{registry} sent {what} with digest {found} instead of {expected}; nothing of it was kept"
    )]
    Digest {
        /// The registry that was asked.
        registry: String,
        /// `layer`, `manifest` …
        what: &'static str,
        /// What it hashes to.
        found: BlobDigest,
        /// What it should hash to.
        expected: BlobDigest,
    },
    /// Content of another size than was told.
    #[error(
        "{registry} sent {found} bytes of the layer {digest} instead of {expected}; nothing of it was kept"
    )]
    Size {
        /// The registry that was asked.
        registry: String,
        /// The layer.
        digest: BlobDigest,
        /// What was sent, or would be, in bytes; where it did not end, as far as it was read.
        found: u64,
        /// What the manifest says, in bytes.
        expected: u64,
    },
    /// A document that is too long to be one.
    #[error("{registry} sends {what} of more than {limit} bytes")]
    TooLong {
        /// The registry that was asked.
        registry: String,
        /// What it was asked for.
        what: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The image does not fit into the cache.
    #[error(
        "the layers of {reference} are {size} bytes, and the cache may have {limit}; raise registries.cache_limit"
    )]
    TooLarge {
        /// The image.
        reference: String,
        /// All layers, in bytes.
        size: u64,
        /// The cache's limit, in bytes.
        limit: u64,
    },
    /// The image is not for the platform, or is none that can be used.
    #[error("cannot use {reference}")]
    Image {
        /// The image.
        reference: String,
        /// Why not.
        source: ImageError,
    },
    /// It was not to be fetched, and is not here.
    #[error(
        "{reference} for {platform} is not in the cache: {missing}; pull it with \"--pull missing\""
    )]
    NotCached {
        /// The image.
        reference: String,
        /// The platform.
        platform: String,
        /// What is not there.
        missing: String,
    },
    /// No space in the cache.
    #[error("no space is left for \"{}\"; free some there, or lower registries.cache_limit, and pull again to go on", path.display())]
    DiskFull {
        /// What was written.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(CacheError),
    /// The program is about to end.
    #[error("the pull was called off; pull again to go on from there")]
    Cancelled,
}

impl From<CacheError> for PullError {
    fn from(error: CacheError) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::DiskFull {
                path: error.path,
                source: error.source,
            },
            _ => Self::Cache(error),
        }
    }
}

impl PullError {
    /// Whether another registry could do no better.
    pub(crate) fn is_local(&self) -> bool {
        matches!(
            self,
            Self::DiskFull { .. } | Self::Cache(_) | Self::Cancelled
        )
    }
}

fn said(message: &str) -> String {
    match message.is_empty() {
        true => String::new(),
        false => format!(" (\"{message}\")"),
    }
}

fn later(retry_after: Option<&str>) -> String {
    match retry_after {
        None => "later".to_owned(),
        Some(seconds) if seconds.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("in {seconds} seconds")
        }
        Some(date) => format!("after {date}"),
    }
}

/// Words from elsewhere, for display: printable, and not too long.
pub(crate) fn show(text: &str) -> String {
    const MOST: usize = 200;
    let text: String = text.trim().escape_debug().collect();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_no_broken_cache() {
        let error = |kind| {
            PullError::from(CacheError {
                operation: "write",
                path: "/cache/partial/x".into(),
                source: io::Error::from(kind),
            })
        };
        let full = error(io::ErrorKind::StorageFull);
        assert!(matches!(full, PullError::DiskFull { .. }), "{full:?}");
        assert!(full.to_string().contains("\"/cache/partial/x\""), "{full}");
        let denied = error(io::ErrorKind::PermissionDenied);
        assert!(matches!(denied, PullError::Cache(_)), "{denied:?}");
        assert!(full.is_local() && denied.is_local());
    }
}
