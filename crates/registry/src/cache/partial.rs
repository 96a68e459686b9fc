//! A blob on its way.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cowslip_image::{BlobDigest, Hasher};
use rustix::fs::OFlags;
use tokio::sync::oneshot;

use super::{Cache, CacheError, blocking, failed, is_at, sync_directory};
use crate::error::PullError;

/// What there is of a blob so far. Only one in the whole system has it at a time; when it is dropped the file stays, to
/// be gone on with.
#[derive(Debug)]
pub(crate) struct Partial {
    cache: Cache,
    digest: BlobDigest,
    /// Not there only while a thread has it.
    state: Option<State>,
}

#[derive(Debug)]
struct State {
    /// Locked, and at its end.
    file: File,
    path: PathBuf,
    hasher: Hasher,
    length: u64,
}

impl Partial {
    /// Takes up what there is of a blob, waiting for whoever has it. `None` when the blob became whole meanwhile.
    pub(crate) async fn open(
        cache: &Cache,
        digest: &BlobDigest,
    ) -> Result<Option<Self>, PullError> {
        let path = cache.partial_path(digest);
        loop {
            let file = locked(&path).await?;
            let (cache, digest, path) = (cache.clone(), digest.clone(), path.clone());
            let taken = blocking(move || take_up(&cache, &digest, file, path)).await??;
            match taken {
                Taken::Partial(partial) => return Ok(Some(*partial)),
                Taken::Whole => return Ok(None),
                Taken::Again => {}
            }
        }
    }

    /// How much is there, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.length)
    }

    /// The digest of what is there.
    pub(crate) fn found(&self) -> Option<BlobDigest> {
        Some(self.state.as_ref()?.hasher.clone().finish())
    }

    /// Writes what comes next.
    pub(crate) async fn append(&mut self, chunks: Vec<Bytes>) -> Result<(), PullError> {
        self.change(move |state| {
            for chunk in chunks {
                state
                    .file
                    .write_all(&chunk)
                    .map_err(failed("write", &state.path))?;
                state.hasher.update(&chunk);
                state.length += chunk.len() as u64;
            }
            Ok(())
        })
        .await
    }

    /// Forgets what is there.
    pub(crate) async fn restart(&mut self) -> Result<(), PullError> {
        let hasher = Hasher::like(&self.digest);
        self.change(|state| {
            let cut = state.file.set_len(0).and_then(|()| state.file.rewind());
            cut.map_err(failed("empty", &state.path))?;
            state.hasher = hasher;
            state.length = 0;
            Ok(())
        })
        .await
    }

    /// Makes it a blob. The caller has compared the digest.
    pub(crate) async fn publish(mut self) -> Result<(), PullError> {
        let Some(state) = self.state.take() else {
            return Err(PullError::Cancelled);
        };
        let (cache, digest) = (self.cache, self.digest);
        blocking(move || {
            let State { file, path, .. } = state;
            file.sync_all().map_err(failed("sync", &path))?;
            let blob = cache.blob_path(&digest);
            fs::rename(&path, &blob).map_err(failed("publish", &blob))?;
            for directory in [blob.parent(), path.parent()].into_iter().flatten() {
                sync_directory(directory)?;
            }
            Ok::<_, CacheError>(())
        })
        .await??;
        Ok(())
    }

    /// Removes the file.
    pub(crate) async fn remove(mut self) -> Result<(), PullError> {
        self.change(|state| fs::remove_file(&state.path).map_err(failed("remove", &state.path)))
            .await
    }

    async fn change(
        &mut self,
        change: impl FnOnce(&mut State) -> Result<(), CacheError> + Send + 'static,
    ) -> Result<(), PullError> {
        let Some(mut state) = self.state.take() else {
            return Err(PullError::Cancelled);
        };
        let (state, changed) = blocking(move || {
            let changed = change(&mut state);
            (state, changed)
        })
        .await?;
        self.state = Some(state);
        Ok(changed?)
    }
}

/// Opens and locks the file.
async fn locked(path: &Path) -> Result<File, PullError> {
    loop {
        let opened = path.to_owned();
        let file = blocking(move || {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let flags = i32::try_from(flags.bits()).unwrap_or_default();
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.mode(0o600).custom_flags(flags).open(&opened)
        });
        let file = file.await?.map_err(failed("open", path))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error).into()),
            Err(TryLockError::WouldBlock) => wait(file, path).await?,
        }
    }
}

/// Waits until another process has made it whole, or let go of it.
async fn wait(file: File, path: &Path) -> Result<(), PullError> {
    let (tell, told) = oneshot::channel();
    // Shared, as its users lock it: when it is whole they begin to, and may go on for long.
    let wait = move || tell.send(file.lock_shared());
    // It may take long. A thread of the runtime's would keep it from shutting down.
    std::thread::Builder::new()
        .name("cowslip-registry-lock".to_owned())
        .spawn(wait)
        .map_err(failed("wait for", path))?;
    let waited = told.await.map_err(|_| PullError::Cancelled)?;
    Ok(waited.map_err(failed("lock", path))?)
}

enum Taken {
    Partial(Box<Partial>),
    /// Who had it made it a blob.
    Whole,
    /// Who had it removed it.
    Again,
}

fn take_up(
    cache: &Cache,
    digest: &BlobDigest,
    file: File,
    path: PathBuf,
) -> Result<Taken, CacheError> {
    if !is_at(&file, &path).map_err(failed("look at", &path))? {
        return Ok(match cache.blob_path(digest).exists() {
            true => Taken::Whole,
            false => Taken::Again,
        });
    }
    if cache.blob_path(digest).exists() {
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        return Ok(Taken::Whole);
    }
    // What was there when a process died is only as good as its digest.
    let mut state = State {
        file,
        path,
        hasher: Hasher::like(digest),
        length: 0,
    };
    let mut buffer = vec![0; 1 << 20];
    loop {
        match state.file.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => {
                state.hasher.update(&buffer[..got]);
                state.length += got as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", &state.path)(error)),
        }
    }
    Ok(Taken::Partial(Box::new(Partial {
        cache: cache.clone(),
        digest: digest.clone(),
        state: Some(state),
    })))
}
