//! The pull of an image: what it is, then all that it needs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cowslip_image::{BlobDigest, Descriptor, Image, ImageError, Layer, Platform};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Lease, Record, View, blocking};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::download::{self, Wanted};
use crate::error::PullError;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::remote::{Client, ClientError};
use crate::source::Source;

/// When the registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// When the cache does not have the whole image, as it was when it was pulled last.
    #[default]
    Missing,
    /// Always for what the tag is now; what is in the cache is not downloaded again.
    Always,
    /// Never: it is in the cache, or it fails.
    Never,
}

/// Says how many of an image's lowest layers are not wanted, because the caller has what they make.
pub type Have<'a> = &'a (dyn Fn(&Image) -> usize + Send + Sync);

/// An image whose blobs are all in the cache, and stay there as long as this does.
#[derive(Debug)]
pub struct Pulled {
    /// The image; its documents are read and checked. Its layers were when they were downloaded, and are again when
    /// they are imported.
    pub image: Image,
    /// What the reference stands for: the digest of an index for several platforms, or of the manifest itself. That of
    /// the manifest is [`Image::digest`].
    pub digest: BlobDigest,
    /// What was pulled.
    pub reference: Reference,
    /// Keeps the blobs in the cache; the image has one, too.
    pub lease: Lease,
}

/// Pulls images into a cache. It is made once: several pulls at a time work together.
pub struct Puller {
    cache: Cache,
    client: Arc<Client>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Puller {
    /// Reads the certificates that the configuration names. It waits for the disk.
    ///
    /// # Errors
    /// [`ClientError`], when they cannot be read.
    pub fn new(cache: Cache, config: Config) -> Result<Self, ClientError> {
        let client = Arc::new(Client::new(config)?);
        Ok(Self { cache, client })
    }

    /// Where the blobs are.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Pulls an image for a platform. Who no longer wants it drops the future: what was downloaded so far is gone on
    /// with by the next pull.
    ///
    /// # Errors
    /// [`PullError`]. What was downloaded stays in the cache, but for what was wrong.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        when: Pull,
        credentials: &Credentials,
        progress: &dyn Progress,
    ) -> Result<Pulled, PullError> {
        let nothing = &|_: &Image| 0;
        self.pull_above(reference, platform, when, credentials, progress, nothing)
            .await
    }

    /// As [`Self::pull`], without those of the lowest layers that the caller has: they need not be in the cache.
    ///
    /// # Errors
    /// As [`Self::pull`].
    pub async fn pull_above(
        &self,
        reference: &Reference,
        platform: &Platform,
        when: Pull,
        credentials: &Credentials,
        progress: &dyn Progress,
        have: Have<'_>,
    ) -> Result<Pulled, PullError> {
        let job = Job {
            puller: self,
            reference,
            platform,
            have,
        };
        let missing = match when {
            Pull::Always => String::new(),
            Pull::Missing | Pull::Never => match job.cached(progress).await? {
                Ok(pulled) => return Ok(pulled),
                Err(missing) => missing,
            },
        };
        if when == Pull::Never {
            return Err(PullError::NotCached {
                reference: reference.to_string(),
                platform: platform.to_string(),
                missing,
            });
        }
        job.fetched(credentials, progress).await
    }
}

/// One pull.
struct Job<'a> {
    puller: &'a Puller,
    reference: &'a Reference,
    platform: &'a Platform,
    have: Have<'a>,
}

impl Job<'_> {
    /// The image from the cache alone, or what is missing of it.
    async fn cached(&self, progress: &dyn Progress) -> Result<Result<Pulled, String>, PullError> {
        let cache = self.puller.cache.clone();
        let (reference, platform) = (self.reference.clone(), self.platform.clone());
        let Some(record) = blocking(move || cache.record(&reference, &platform)).await?? else {
            return Ok(Err("it was not pulled before".to_owned()));
        };
        let lease = Lease::new(self.puller.cache.clone());
        let image = match self.read(&record.root(), &lease).await? {
            Ok(image) => image,
            Err(ImageError::Missing { what, name }) => {
                return Ok(Err(format!("its {what} {name} is missing")));
            }
            Err(source) => match self.damaged(&source).await? {
                Some((what, digest)) => return Ok(Err(format!("its {what} {digest} is damaged"))),
                None => return Err(self.unusable(source)),
            },
        };
        for (digest, size) in self.wanted(&image, progress) {
            match download::held(&self.puller.cache, &digest).await? {
                Some(held) if held.size() == size => lease.add(held),
                _ => return Ok(Err(format!("its layer {digest} is missing"))),
            }
            progress.layer(&digest, size);
            progress.done(&digest);
        }
        Ok(Ok(self.pulled(image, record.digest, lease)))
    }

    /// The image with the registry's help.
    async fn fetched(
        &self,
        credentials: &Credentials,
        progress: &dyn Progress,
    ) -> Result<Pulled, PullError> {
        let cache = &self.puller.cache;
        let source = Source::new(&self.puller.client, self.reference, credentials)?;
        let lease = Lease::new(cache.clone());
        let root = self.root(&source).await?;
        let image = self.documents(&root, &source, &lease).await?;
        let layers = self.wanted(&image, progress);
        let config = self.puller.client.config();
        let size = layers
            .values()
            .fold(0, |sum: u64, size| sum.saturating_add(*size));
        if size > config.cache_limit {
            return Err(PullError::TooLarge {
                reference: self.reference.to_string(),
                size,
                limit: config.cache_limit,
            });
        }
        let downloads = layers.into_iter().map(|(digest, size)| {
            let wanted = Wanted {
                digest,
                size,
                progress,
            };
            download::layer(cache, &source, wanted)
        });
        stream::iter(downloads)
            .buffer_unordered(config.parallel_downloads.get().into())
            .try_for_each(|held| {
                lease.add(held);
                std::future::ready(Ok(()))
            })
            .await?;
        let record = Record {
            reference: self.reference.clone(),
            platform: self.platform.clone(),
            media_type: root.media_type,
            digest: root.digest.clone(),
            size: root.size,
        };
        let cache = cache.clone();
        blocking(move || cache.note(&record)).await??;
        Ok(self.pulled(image, root.digest, lease))
    }

    /// The blobs of the layers that the caller does not have, each once. The others are told as done.
    fn wanted(&self, image: &Image, progress: &dyn Progress) -> HashMap<BlobDigest, u64> {
        let have = (self.have)(image).min(image.layers().len());
        let (lower, upper) = image.layers().split_at(have);
        let wanted = unique(upper);
        for (digest, size) in unique(lower) {
            if !wanted.contains_key(&digest) {
                progress.layer(&digest, size);
                progress.done(&digest);
            }
        }
        wanted
    }

    /// What the reference stands for now. It is fetched only when the cache does not have it.
    async fn root(&self, source: &Source) -> Result<Descriptor, PullError> {
        let cache = &self.puller.cache;
        let what = format!("image {}", self.reference);
        if self.reference.digest().is_none()
            && let Some(head) = source.head(self.reference).await?
        {
            let root = Descriptor::new(&head.media_type, head.digest.clone(), head.size);
            let _turn = cache.turn(&head.digest).await;
            let held = download::held(cache, &head.digest).await?;
            if held.is_some_and(|held| held.size() == head.size) {
                return Ok(root);
            }
            let wanted = head.digest.to_string();
            let (found, bytes) = source.manifest(&wanted, Some(&head.digest), &what).await?;
            download::store(cache, &found.digest, bytes).await?;
            return Ok(Descriptor::new(&found.media_type, found.digest, found.size));
        }
        let wanted = self.reference.wanted();
        let (found, bytes) = source
            .manifest(&wanted, self.reference.digest(), &what)
            .await?;
        let _turn = cache.turn(&found.digest).await;
        if download::held(cache, &found.digest).await?.is_none() {
            download::store(cache, &found.digest, bytes).await?;
        }
        Ok(Descriptor::new(&found.media_type, found.digest, found.size))
    }

    /// Reads the documents, and fetches what is missing of them: only reading one tells which is the next.
    async fn documents(
        &self,
        root: &Descriptor,
        source: &Source,
        lease: &Lease,
    ) -> Result<Image, PullError> {
        let mut fetched = HashSet::new();
        loop {
            let (what, digest) = match self.read(root, lease).await? {
                Ok(image) => return Ok(image),
                Err(ImageError::Missing { what, name }) => match name.parse::<BlobDigest>() {
                    Ok(digest) if fetched.insert(digest.clone()) => (what, digest),
                    _ => return Err(self.unusable(ImageError::Missing { what, name })),
                },
                Err(source) => match self.damaged(&source).await? {
                    Some((what, digest)) if fetched.insert(digest.clone()) => (what, digest),
                    _ => return Err(self.unusable(source)),
                },
            };
            let cache = &self.puller.cache;
            let _turn = cache.turn(&digest).await;
            if download::held(cache, &digest).await?.is_some() {
                continue;
            }
            let bytes = match what {
                "config" => source.document(&digest).await?,
                _ => {
                    let name = format!("{what} {digest}");
                    source
                        .manifest(&digest.to_string(), Some(&digest), &name)
                        .await?
                        .1
                }
            };
            download::store(cache, &digest, bytes).await?;
        }
    }

    /// Reads the documents as far as they are there.
    async fn read(
        &self,
        root: &Descriptor,
        lease: &Lease,
    ) -> Result<Result<Image, ImageError>, PullError> {
        let (root, lease, platform) = (root.clone(), lease.clone(), self.platform.clone());
        blocking(move || Image::from_blobs(Box::new(View::new(&lease)?), root, &platform)).await
    }

    /// Which document went bad where it is kept, for it was checked when it came. It is taken out.
    async fn damaged(
        &self,
        error: &ImageError,
    ) -> Result<Option<(&'static str, BlobDigest)>, PullError> {
        let (what, digest) = match error {
            ImageError::Digest { what, expected, .. } => (what, expected.clone()),
            ImageError::Size { what, name, .. } => match name.parse() {
                Ok(digest) => (what, digest),
                Err(_) => return Ok(None),
            },
            _ => return Ok(None),
        };
        let damaged = download::discard_damaged(&self.puller.cache, &digest).await?;
        Ok(damaged.then_some((what, digest)))
    }

    fn unusable(&self, source: ImageError) -> PullError {
        PullError::Image {
            reference: self.reference.to_string(),
            source,
        }
    }

    fn pulled(&self, image: Image, digest: BlobDigest, lease: Lease) -> Pulled {
        Pulled {
            image,
            digest,
            reference: self.reference.clone(),
            lease,
        }
    }
}

/// The blobs of layers, each once. Where an image tells two sizes of one blob, the import finds the wrong one.
fn unique(layers: &[Layer]) -> HashMap<BlobDigest, u64> {
    let sized = layers
        .iter()
        .filter_map(|layer| Some((layer.digest.clone()?, layer.size)));
    sized.collect()
}
