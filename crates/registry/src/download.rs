//! A blob is downloaded: once, from where it broke off, and held to its size and digest.
//!
//! ```text
//!  in the cache? ──► wait for one's turn ──► in the cache? ──► lock the partial ──► fetch ⟲ ──► publish
//!      └─ held           (this process)          └─ held        (all processes)     └ broken: go on
//! ```

use std::sync::Arc;

use bytes::Bytes;
use cowslip_image::BlobDigest;
use futures_util::StreamExt as _;
use tokio::sync::Mutex;

use crate::cache::{Cache, Held, Partial, blocking};
use crate::error::PullError;
use crate::progress::Progress;
use crate::remote::{Backoff, Failure, Remote, content_length, range_start};
use crate::source::Source;

/// A connection that brought so many bytes was of use, and is not counted as a failure.
const WORTHWHILE: u64 = 64 << 10;
/// So many pieces that have arrived are written at once; each is some 16 KiB.
const PIECES: usize = 32;

/// Which blob.
#[derive(Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) digest: BlobDigest,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) progress: &'a dyn Progress,
}

/// Looks for a blob in the cache.
pub(crate) async fn held(cache: &Cache, digest: &BlobDigest) -> Result<Option<Held>, PullError> {
    let (cache, digest) = (cache.clone(), digest.clone());
    Ok(blocking(move || cache.hold(&digest)).await??)
}

/// Gets a layer, if it is not there.
pub(crate) async fn layer(
    cache: &Cache,
    source: &Source,
    wanted: Wanted<'_>,
) -> Result<Held, PullError> {
    wanted.progress.layer(&wanted.digest, wanted.size);
    loop {
        if let Some(found) = whole(cache, &wanted).await? {
            return Ok(found);
        }
        let _turn = cache.turn(&wanted.digest).await;
        if let Some(found) = whole(cache, &wanted).await? {
            return Ok(found);
        }
        // Another process may have made it whole. In either way it is looked for again: until it is held, it can be
        // collected.
        if let Some(partial) = Partial::open(cache, &wanted.digest).await? {
            fetch_from(source, partial, &wanted)
                .await?
                .publish()
                .await?;
        }
    }
}

/// A blob of the cache, unless it was damaged there: then it is taken out.
async fn whole(cache: &Cache, wanted: &Wanted<'_>) -> Result<Option<Held>, PullError> {
    let Some(found) = held(cache, &wanted.digest).await? else {
        return Ok(None);
    };
    if found.size() != wanted.size {
        if discard_damaged(cache, &wanted.digest).await? {
            return Ok(None);
        }
        return Err(PullError::Size {
            registry: "the cache".to_owned(),
            digest: wanted.digest.clone(),
            found: found.size(),
            expected: wanted.size,
        });
    }
    wanted.progress.done(&wanted.digest);
    Ok(Some(found))
}

/// Takes a blob out of the cache if it is damaged there; says whether it was.
pub(crate) async fn discard_damaged(cache: &Cache, digest: &BlobDigest) -> Result<bool, PullError> {
    let (cache, digest) = (cache.clone(), digest.clone());
    Ok(blocking(move || cache.discard_damaged(&digest)).await??)
}

/// Keeps a document that was fetched and checked.
pub(crate) async fn store(
    cache: &Cache,
    digest: &BlobDigest,
    bytes: Vec<u8>,
) -> Result<(), PullError> {
    let Some(mut partial) = Partial::open(cache, digest).await? else {
        return Ok(());
    };
    partial.restart().await?;
    partial.append(vec![Bytes::from(bytes)]).await?;
    partial.publish().await.map(drop)
}

/// Completes what there is of a blob from the first place that can.
async fn fetch_from(
    source: &Source,
    partial: Partial,
    wanted: &Wanted<'_>,
) -> Result<Partial, PullError> {
    // What one place sent is gone on with by the next.
    let partial = Arc::new(Mutex::new(partial));
    let fetched = source
        .first(|remote| {
            let (partial, wanted) = (Arc::clone(&partial), wanted.clone());
            Box::pin(async move { fetch(remote, &mut *partial.lock().await, &wanted).await })
        })
        .await;
    let partial = Arc::into_inner(partial)
        .ok_or(PullError::Cancelled)?
        .into_inner();
    match fetched {
        Ok(()) => Ok(partial),
        Err(error) => {
            if partial.length() == 0 {
                partial.remove().await?;
            }
            Err(error)
        }
    }
}

async fn fetch(
    remote: &Remote,
    partial: &mut Partial,
    wanted: &Wanted<'_>,
) -> Result<(), PullError> {
    let mut backoff = Backoff::default();
    // What another process, or another place, sent may be what is wrong.
    let mut is_ours = partial.length() == 0;
    let mut was_short = false;
    loop {
        let before = partial.length();
        if before == wanted.size {
            let found = partial.found().ok_or(PullError::Cancelled)?;
            if found == wanted.digest {
                return Ok(());
            }
            partial.restart().await?;
            if std::mem::replace(&mut is_ours, true) {
                return Err(PullError::Digest {
                    registry: remote.name(),
                    what: "layer",
                    found,
                    expected: wanted.digest.clone(),
                });
            }
            continue;
        }
        match transfer(remote, partial, wanted).await {
            Ok(()) if partial.length() == wanted.size => {}
            // A proxy may end an answer early without saying so. It is asked for the rest, once.
            Ok(()) if !was_short && partial.length() > before => was_short = true,
            Ok(()) => return Err(wrong_size(remote, partial, wanted, None).await?),
            Err(failure) => {
                if partial.length() >= before.saturating_add(WORTHWHILE) {
                    backoff.reset();
                }
                backoff.wait(failure).await?;
            }
        }
    }
}

/// One request, and what comes of it. That it ended does not mean that it was all.
async fn transfer(
    remote: &Remote,
    partial: &mut Partial,
    wanted: &Wanted<'_>,
) -> Result<(), Failure> {
    let what = format!("layer {}", wanted.digest);
    let mut offset = partial.length();
    if offset > wanted.size {
        partial.restart().await?;
        offset = 0;
    }
    let response = remote.blob(&wanted.digest, offset, &what).await?;
    let continues = response.status() == 206 && range_start(response.headers()) == Some(offset);
    if offset > 0 && !continues {
        // This registry gives no parts, or not this one.
        partial.restart().await?;
        offset = 0;
    }
    if !(continues || response.status() == 200) {
        return Err(Failure::passing(PullError::Status {
            registry: remote.name(),
            what,
            status: response.status().as_u16(),
            message: String::new(),
        }));
    }
    if let Some(length) = content_length(response.headers())
        && offset.saturating_add(length) != wanted.size
    {
        let found = offset.saturating_add(length);
        return Err(wrong_size(remote, partial, wanted, Some(found))
            .await?
            .into());
    }
    wanted.progress.advance(&wanted.digest, offset);
    let mut pieces = response.bytes_stream().ready_chunks(PIECES);
    while let Some(arrived) = pieces.next().await {
        let mut whole = Vec::with_capacity(arrived.len());
        let mut broken = None;
        for piece in arrived {
            match piece {
                Ok(bytes) => whole.push(bytes),
                Err(error) => broken = Some(remote.broken(error, &what)),
            }
        }
        let arrived: u64 = whole.iter().map(|bytes| bytes.len() as u64).sum();
        let length = partial.length().saturating_add(arrived);
        if length > wanted.size {
            return Err(wrong_size(remote, partial, wanted, Some(length))
                .await?
                .into());
        }
        partial.append(whole).await?;
        wanted.progress.advance(&wanted.digest, length);
        if let Some(failure) = broken {
            return Err(failure);
        }
    }
    Ok(())
}

/// Forgets what is there, and gives the error for it.
async fn wrong_size(
    remote: &Remote,
    partial: &mut Partial,
    wanted: &Wanted<'_>,
    found: Option<u64>,
) -> Result<PullError, PullError> {
    let found = found.unwrap_or_else(|| partial.length());
    partial.restart().await?;
    Ok(PullError::Size {
        registry: remote.name(),
        digest: wanted.digest.clone(),
        found,
        expected: wanted.size,
    })
}
