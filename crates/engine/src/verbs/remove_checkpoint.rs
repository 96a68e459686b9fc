//! `checkpoint rm`: what a checkpoint holds, and the layers that only it needed.

use std::sync::Arc;

use cowslip_ledger::{Owner, SandboxRecord, Synchronous};
use cowslip_model::{CheckpointId, Name, SandboxId};

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::{Engine, blocking, to_the_end};

impl Engine {
    /// Releases a checkpoint's directory and deletes its record.
    pub(crate) async fn discard_checkpoint(&self, id: CheckpointId) -> Result<(), EngineError> {
        let site = self.site.clone();
        blocking(move || unwind(&site, Owner::Checkpoint(id))).await??;
        self.site
            .ledger
            .write("checkpoint: delete", Synchronous::Normal, |tx| {
                tx.delete_checkpoint(id)
            })
            .map_err(EngineError::from)
    }

    /// Discards the unpublished checkpoint of that name which a verb left when its clean-up failed too, so that
    /// the name is free again. The caller holds the lock of `holds`.
    pub(crate) async fn discard_left_over(
        &self,
        name: &Name,
        holds: SandboxId,
    ) -> Result<(), EngineError> {
        let found = self.site.ledger.read(|tx| tx.checkpoint_named(name))?;
        let Some(left) = found.filter(|one| !one.ready) else {
            return Ok(());
        };
        // Whoever works on it has the lock of its sandbox, or has marked that it is being made.
        let busy = match left.sandbox == holds {
            true => None,
            false => Some(self.try_lock(left.sandbox)),
        };
        match busy {
            Some(None) => Ok(()),
            _ => self.discard_if_unpublished(left.id).await,
        }
    }

    /// Discards a checkpoint that was never published, or was withdrawn, unless somebody works on it.
    pub(crate) async fn discard_unpublished(&self, id: CheckpointId) -> Result<(), EngineError> {
        let Some(left) = self.site.ledger.read(|tx| tx.checkpoint(id))? else {
            return Ok(());
        };
        let _busy = self.lock(left.sandbox).await;
        self.discard_if_unpublished(id).await
    }

    /// The same; the caller holds the lock of its sandbox.
    async fn discard_if_unpublished(&self, id: CheckpointId) -> Result<(), EngineError> {
        // In this order: what is published in between was being made before.
        let worked_on = self.being_made().contains(&Owner::Checkpoint(id));
        let left = self.site.ledger.read(|tx| tx.checkpoint(id))?;
        match left.filter(|one| !one.ready && !worked_on) {
            Some(left) => {
                tracing::warn!(checkpoint = %left.name, "an unpublished checkpoint was left; it goes");
                self.discard_checkpoint(left.id).await
            }
            None => Ok(()),
        }
    }

    /// Removes a checkpoint: its memory and state files, and the layers only it needed (R37).
    /// Sandboxes forked from it keep their disks; they are told about unless `cascade` removes them.
    ///
    /// # Errors
    /// When sandboxes were forked from it and `cascade` is not given, or something did not go.
    pub async fn remove_checkpoint(
        self: &Arc<Self>,
        reference: &str,
        cascade: bool,
    ) -> Result<(), EngineError> {
        let record = self.find_checkpoint(reference)?;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let forks: Vec<SandboxRecord> = engine
                .site
                .ledger
                .read(|tx| tx.sandboxes())?
                .into_iter()
                .filter(|sandbox| sandbox.forked_from == Some(record.id))
                .collect();
            if !forks.is_empty() && !cascade {
                return Err(EngineError::InUse {
                    kind: "checkpoint",
                    name: record.name.to_string(),
                    users: forks
                        .iter()
                        .map(|fork| format!("sandbox \"{}\"", fork.name))
                        .collect(),
                    hint: "remove those first, or remove them with it: --cascade",
                });
            }
            for fork in forks {
                let _busy = engine.lock(fork.id).await;
                engine.remove_locked(fork.id).await?;
            }
            // From here on nobody sees it, and nobody else discards it; a crash leaves an unpublished one, which recovery discards.
            let _making = engine.making(Owner::Checkpoint(record.id));
            engine
                .site
                .ledger
                .write("checkpoint: withdraw", Synchronous::Normal, |tx| {
                    let mut withdrawn = record.clone();
                    withdrawn.ready = false;
                    tx.put_checkpoint(&withdrawn)
                })?;
            engine.discard_checkpoint(record.id).await?;
            let event =
                engine
                    .site
                    .ledger
                    .write("checkpoint: removed", Synchronous::Normal, |tx| {
                        let detail = serde_json::json!({});
                        tx.emit("checkpoint.removed", record.id, Some(&record.name), detail)
                    })?;
            engine.announce(event);
            engine.collect_layers().await.map(drop)
        })
        .await
    }
}
