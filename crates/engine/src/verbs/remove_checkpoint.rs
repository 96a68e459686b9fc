//! `checkpoint rm`: what a checkpoint holds, and the layers that only it needed.

use std::sync::Arc;

use cowslip_ledger::{Owner, SandboxRecord, Synchronous};
use cowslip_model::CheckpointId;

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
            // From here on nobody sees it; a crash leaves an unpublished one, which recovery discards.
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
