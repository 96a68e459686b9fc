//! Where one image may come from: the mirrors of its registry in order, then the registry itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowslip_image::BlobDigest;
use futures_util::future::BoxFuture;

use crate::credentials::Credentials;
use crate::error::PullError;
use crate::reference::Reference;
use crate::remote::{Backoff, Client, Head, Remote};

/// What one pull asks.
pub(crate) struct Source {
    places: Vec<Place>,
}

struct Place {
    remote: Remote,
    /// It cannot be reached: nothing more is asked of it in this pull.
    is_down: AtomicBool,
}

impl Source {
    pub(crate) fn new(
        client: &Arc<Client>,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Self, PullError> {
        let registry = reference.registry();
        let mirrors = client.config().mirrors.get(registry).into_iter().flatten();
        let mirrors = mirrors.filter(|mirror| *mirror != registry);
        let place = |(host, credentials)| {
            let remote = Remote::new(
                Arc::clone(client),
                host,
                reference.repository(),
                credentials,
            )?;
            Ok(Place {
                remote,
                is_down: AtomicBool::new(false),
            })
        };
        // The credentials are for the registry, and no business of a mirror's.
        let all = mirrors.map(|mirror| (mirror, Credentials::Anonymous));
        let all = all.chain([(registry, credentials.clone())]);
        Ok(Self {
            places: all.map(place).collect::<Result<_, PullError>>()?,
        })
    }

    /// Asks one after the other until one has it. The registry's own answer is the one that counts.
    pub(crate) async fn first<'a, T>(
        &'a self,
        mut ask: impl FnMut(&'a Remote) -> BoxFuture<'a, Result<T, PullError>>,
    ) -> Result<T, PullError> {
        let (registry, mirrors) = self.places.split_last().ok_or(PullError::Cancelled)?;
        for mirror in mirrors
            .iter()
            .filter(|mirror| !mirror.is_down.load(Ordering::Relaxed))
        {
            match ask(&mirror.remote).await {
                Err(error) if error.is_local() => return Err(error),
                Err(error) => {
                    let gone =
                        matches!(error, PullError::Unreachable { .. } | PullError::Tls { .. });
                    mirror.is_down.fetch_or(gone, Ordering::Relaxed);
                    tracing::info!(mirror = mirror.remote.name(), %error, "a mirror is passed over");
                }
                found => return found,
            }
        }
        ask(&registry.remote).await
    }

    /// What a tag is, where that can be told without fetching it.
    pub(crate) async fn head(&self, reference: &Reference) -> Result<Option<Head>, PullError> {
        self.first(|remote| {
            Box::pin(async move {
                let mut backoff = Backoff::default();
                loop {
                    match remote.head(reference).await {
                        Ok(head) => return Ok(head),
                        Err(failure) => backoff.wait(failure).await?,
                    }
                }
            })
        })
        .await
    }

    /// Fetches a manifest or an index by what the registry knows it as.
    pub(crate) async fn manifest(
        &self,
        wanted: &str,
        expected: Option<&BlobDigest>,
        what: &str,
    ) -> Result<(Head, Vec<u8>), PullError> {
        let (wanted, expected, what) = (wanted.to_owned(), expected.cloned(), what.to_owned());
        self.first(|remote| {
            let (wanted, expected, what) = (wanted.clone(), expected.clone(), what.clone());
            Box::pin(async move {
                let mut backoff = Backoff::default();
                loop {
                    match remote.manifest(&wanted, expected.as_ref(), &what).await {
                        Ok(found) => return Ok(found),
                        Err(failure) => backoff.wait(failure).await?,
                    }
                }
            })
        })
        .await
    }

    /// Fetches a document that is kept as a blob.
    pub(crate) async fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>, PullError> {
        let what = format!("config {digest}");
        self.first(|remote| {
            let (digest, what) = (digest.clone(), what.clone());
            Box::pin(async move {
                let mut backoff = Backoff::default();
                loop {
                    match remote.document(&digest, &what).await {
                        Ok(bytes) => return Ok(bytes),
                        Err(failure) => backoff.wait(failure).await?,
                    }
                }
            })
        })
        .await
    }
}
