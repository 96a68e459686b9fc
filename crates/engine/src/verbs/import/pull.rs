//! Images from registries, through the cache that all imports share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cowslip_image::{Base, BlobDigest, Image, Platform};
use cowslip_model::api::{ImportMessage, PullPolicy, RegistryCredentials};
use cowslip_registry::{
    Cache, Collected, Credentials, Progress, Pull, PullError, Pulled, Puller, Reference,
};
use tokio::sync::mpsc;

use super::progress::TELL_EVERY;
use crate::error::EngineError;
use crate::{Engine, blocking};

/// An image of a registry.
#[derive(Debug)]
pub struct RegistryImage {
    reference: Reference,
    when: Pull,
    credentials: Credentials,
}

impl RegistryImage {
    /// Checks a reference.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(
        reference: &str,
        when: PullPolicy,
        credentials: Option<RegistryCredentials>,
    ) -> Result<Self, EngineError> {
        let reference =
            reference
                .parse()
                .map_err(|error: cowslip_registry::ParseReferenceError| {
                    EngineError::Invalid(error.to_string())
                })?;
        Ok(Self {
            reference,
            when: match when {
                PullPolicy::Missing => Pull::Missing,
                PullPolicy::Always => Pull::Always,
                PullPolicy::Never => Pull::Never,
            },
            credentials: match credentials {
                None => Credentials::Anonymous,
                Some(RegistryCredentials::Basic { user, password }) => {
                    Credentials::Basic { user, password }
                }
                Some(RegistryCredentials::IdentityToken { token }) => {
                    Credentials::IdentityToken(token)
                }
            },
        })
    }

    pub(super) fn words(&self) -> String {
        format!("docker://{}", self.reference)
    }
}

/// Tells a client how far the layers are.
struct Layers {
    messages: mpsc::Sender<ImportMessage>,
    /// Of each layer its size, and when it was told of last.
    told: Mutex<HashMap<BlobDigest, (u64, Option<Instant>)>>,
}

impl Layers {
    fn tell(&self, digest: &BlobDigest, bytes: u64, total: u64) {
        // A full channel only means that the client is slower than the download.
        let _ = self.messages.try_send(ImportMessage::Layer {
            digest: digest.to_string(),
            total,
            bytes,
        });
    }
}

impl Progress for Layers {
    fn layer(&self, digest: &BlobDigest, total: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(digest.clone(), (total, None));
        drop(told);
        self.tell(digest, 0, total);
    }

    fn advance(&self, digest: &BlobDigest, bytes: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((total, last)) = told.get_mut(digest) else {
            return;
        };
        if last.is_some_and(|last| last.elapsed() < TELL_EVERY) {
            return;
        }
        *last = Some(Instant::now());
        let total = *total;
        drop(told);
        self.tell(digest, bytes, total);
    }

    fn done(&self, digest: &BlobDigest) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let total = told.remove(digest).map(|(total, _)| total);
        drop(told);
        if let Some(total) = total {
            self.tell(digest, total, total);
        }
    }
}

impl Engine {
    /// Downloads what neither the cache has of an image nor a template, which is given then. A client that is gone calls it off; what was downloaded
    /// stays for the next one.
    pub(super) async fn pull(
        &self,
        image: &RegistryImage,
        platform: &Platform,
        messages: mpsc::Sender<ImportMessage>,
    ) -> Result<(Pulled, Option<Base>), EngineError> {
        let puller = self.puller().await?;
        let layers = Layers {
            messages: messages.clone(),
            told: Mutex::default(),
        };
        let base = Mutex::new(None);
        let have = |image: &Image| {
            let found = self.template_below(image);
            let layers = found.as_ref().map_or(0, |base| base.layers);
            *base.lock().unwrap_or_else(PoisonError::into_inner) = found;
            layers
        };
        let pull = puller.pull_above(
            &image.reference,
            platform,
            image.when,
            &image.credentials,
            &layers,
            &have,
        );
        let pulled = tokio::select! {
            pulled = pull => pulled,
            () = messages.closed() => Err(PullError::Cancelled),
        };
        let pulled = pulled?;
        Ok((
            pulled,
            base.into_inner().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// What pulls, made when it is first needed.
    async fn puller(&self) -> Result<&Arc<Puller>, EngineError> {
        let made = self.puller.get_or_try_init(|| async {
            let (path, config) = (self.site.layout.images(), self.config.registries.clone());
            let made = blocking(move || {
                let cache = Cache::open(&path)?;
                Puller::new(cache, config).map_err(|error| EngineError::Invalid(error.to_string()))
            });
            made.await?.map(Arc::new)
        });
        made.await
    }

    /// Takes out of the cache what was not used for longest, until it keeps no more than it may; all that nothing uses,
    /// if `empty`.
    ///
    /// # Errors
    /// When the cache cannot be read, or something cannot be removed.
    pub(crate) async fn collect_blobs(&self, empty: bool) -> Result<Collected, EngineError> {
        let path = self.site.layout.images();
        let limit = match empty {
            true => 0,
            false => self.config.registries.cache_limit,
        };
        blocking(move || match path.exists() {
            true => Cache::open(&path)?.gc(limit),
            // No image was ever pulled.
            false => Ok(Collected::default()),
        })
        .await?
        .map_err(EngineError::Cache)
    }
}
