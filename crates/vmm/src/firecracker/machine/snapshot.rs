//! A machine written to an image, and made from one.

use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;

use super::super::api::{ApiError, SnapshotCreate, SnapshotKind, SnapshotLoad};
use super::super::image::Content;
use super::super::launch::failed;
use super::super::paths::seen;
use super::super::{image, jail};
use super::FirecrackerMachine;
use crate::{RunState, Saved, VmmError, blocking};

impl FirecrackerMachine {
    /// Makes the machine from `image`; its vCPUs stand still.
    pub(in crate::firecracker) async fn load(
        &self,
        image: &Path,
        track_memory: bool,
    ) -> Result<(), VmmError> {
        const OPERATION: &str = "restore";
        let memory = if self.exchange.is_some() {
            seen::image()
        } else {
            self.require_seen(OPERATION, image)?;
            image.to_owned()
        };
        let (from, to) = (image.to_owned(), self.paths.state.clone());
        let user = self.user.as_ref().map(|user| (user.uid, user.gid));
        blocking(move || {
            let extracted = image::extract(&from, &to).and_then(|state| match user {
                Some((uid, gid)) => fchown(&state, Some(uid), Some(gid)),
                None => Ok(()),
            });
            extracted.map_err(|source| VmmError::File {
                operation: "read the device state of the image",
                path: from,
                source,
            })
        })
        .await?;
        let load = SnapshotLoad {
            state: seen::state(),
            memory,
            track_dirty_pages: track_memory,
            // The path that the image names is this machine's own too.
            vsock: None,
        };
        let loaded = self.api.load_snapshot(&load).await;
        self.remove_state();
        match loaded {
            Ok(()) => Ok(()),
            // Firecracker ends over an image that it cannot load.
            Err(ApiError::Closed { request, why }) => {
                let Some(words) = self.ending.ending().await else {
                    let error = ApiError::Closed { request, why };
                    return Err(self.explain(OPERATION, error).await);
                };
                let words = words.unwrap_or_else(|| "the image is not whole".to_owned());
                Err(self.refused(OPERATION, format!("\"{}\": {words}", image.display())))
            }
            Err(error) => Err(self.explain(OPERATION, error).await),
        }
    }

    /// Writes the machine, which stands still, to `image`: only what changed since `base`, if it can.
    pub(super) async fn save_to(
        &self,
        image: &Path,
        base: Option<&Path>,
    ) -> Result<Saved, VmmError> {
        const OPERATION: &str = "save";
        if self.run_state(OPERATION).await? == RunState::Running {
            return Err(self.refused(OPERATION, "the machine runs: pause it first".to_owned()));
        }
        if image.symlink_metadata().is_ok() {
            let exists = std::io::ErrorKind::AlreadyExists.into();
            return Err(failed("create the image", image)(exists));
        }
        let content = self.content(image, base).await?;
        self.clear();
        let written = self.write(image, content).await;
        // The guest is told to drop its connections, also where the save fails after that. Until it runs
        // and answers, the present one would look as if it stood.
        self.hang_up(None);
        self.clear();
        if written.is_err() {
            // Part of an image is of no use to anyone, and the disk may be full.
            remove(image);
        }
        Ok(Saved {
            bytes: written?,
            changes_only: content == Content::Changes,
        })
    }

    /// What is to be written.
    async fn content(&self, image: &Path, base: Option<&Path>) -> Result<Content, VmmError> {
        if base.is_none() || !self.tracks_memory {
            return Ok(Content::Whole);
        }
        let directory = image.parent().unwrap_or(image).to_owned();
        let exact = blocking(move || Ok(image::tells_holes(&directory))).await?;
        Ok(if exact {
            Content::Changes
        } else {
            Content::Whole
        })
    }

    /// Has an image written by Firecracker and put together.
    async fn write(&self, image: &Path, content: Content) -> Result<u64, VmmError> {
        const OPERATION: &str = "save";
        let create = |memory, state| SnapshotCreate {
            snapshot_type: match content {
                Content::Whole => SnapshotKind::Full,
                Content::Changes => SnapshotKind::Diff,
            },
            snapshot_path: state,
            mem_file_path: memory,
        };
        let (create, state) = match &self.exchange {
            Some(exchange) => {
                let create = create(seen::exchanged_memory(), seen::exchanged_state());
                (create, exchange.state.clone())
            }
            None => {
                self.require_seen(OPERATION, image)?;
                let made = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(image);
                made.map_err(failed("create the image", image))?;
                (
                    create(image.to_owned(), seen::state()),
                    self.paths.state.clone(),
                )
            }
        };
        if let Err(error) = self.api.create_snapshot(&create).await {
            return Err(self.explain(OPERATION, error).await);
        }
        let (exchange, image) = (self.exchange.clone(), image.to_owned());
        blocking(move || {
            let state = jail::open(&state)?;
            let mut file = match &exchange {
                Some(exchange) => jail::take_out(exchange, &image)?,
                None => OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&image)
                    .map_err(failed("open the image", &image))?,
            };
            let bytes = image::seal(&mut file, &state, content)
                .map_err(failed("put the device state into the image", &image))?;
            drop(file);
            if exchange.is_some() {
                jail::require_settled(&image)?;
            }
            Ok(bytes)
        })
        .await
    }

    /// What a save leaves beside the image, or an earlier one left, is of no use to anyone.
    fn clear(&self) {
        self.remove_state();
        if let Some(exchange) = &self.exchange {
            remove(&exchange.memory);
            remove(&exchange.state);
        }
    }

    /// Device state is of no use to anyone outside its image.
    fn remove_state(&self) {
        remove(&self.paths.state);
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a part of an image could not be removed");
        }
        _ => {}
    }
}
