//! `resume`: a paused sandbox comes back with its memory.
//!
//! The restored machine gets a *new* top layer, so that the paused image and the disk of the same
//! instant stay together until the sandbox runs: a resume that fails at any point can be tried again
//! (R32). When it runs, the new layer is its top and the image goes.

use std::sync::Arc;

use cowslip_ledger::{LayerRecord, LedgerError, SandboxRecord, Synchronous};
use cowslip_model::api;
use cowslip_model::{LayerId, SandboxId, SandboxState, Timestamp, Transition};

use crate::error::EngineError;
use crate::verbs::boot::{Image, Origin};
use crate::verbs::pause::IMAGE;
use crate::{Engine, to_the_end};

impl Engine {
    /// Restores a paused sandbox.
    ///
    /// # Errors
    /// When it is not paused, or does not come up: it is paused as before then.
    pub async fn resume(self: &Arc<Self>, reference: &str) -> Result<api::Sandbox, EngineError> {
        let id = self.find_sandbox(reference)?.id;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let _busy = engine.lock(id).await;
            let record = engine.resume_locked(id).await?;
            engine.tidy_chain(id);
            engine.view_sandbox(&record)
        })
        .await
    }

    async fn resume_locked(self: &Arc<Self>, id: SandboxId) -> Result<SandboxRecord, EngineError> {
        let record = self.begin(id, Transition::Resuming, "resume").await?;
        let outcome = async {
            // A pause, or an earlier resume, may have left what it could not release.
            self.end_machine(id).await?;
            let top = self.begin_new_top(&record).await?;
            let image = self.site.layout.sandbox(id).join(IMAGE);
            let saved_by = record.monitor.clone().ok_or_else(|| {
                EngineError::Internal(format!(
                    "sandbox \"{}\" has no record of its monitor",
                    record.name
                ))
            })?;
            let generation = record.generation + 1;
            let origin = Origin::Image {
                image: Image::File(&image),
                saved_by: &saved_by,
                new_identity: false,
                generation,
            };
            let started = self.start_machine(&record, top, origin).await?;
            let base = self.base_of(id, &started).await;
            self.publish_running(id, "resume: publish", started, |sandbox| {
                sandbox.memory_base = base;
                sandbox.layer = sandbox.next_layer.take();
                sandbox.generation = generation;
                sandbox.paused_image = false;
            })
        };
        match outcome.await {
            Ok(record) => {
                self.discard_image(id)?;
                self.collect_layers().await?;
                Ok(record)
            }
            Err(error) => {
                // Still paused, whole, to be tried again.
                let ended = self.end_machine(id).await;
                let reverted = match ended {
                    Ok(()) => self.revert(id, "resume: give up"),
                    Err(error) => Err(error),
                };
                let settled = match reverted {
                    Ok(()) => self.settle(id, "resume: settle", SandboxState::Paused, None),
                    Err(error) => Err(error),
                };
                let collected = match settled {
                    Ok(()) => self.collect_layers().await.map(drop),
                    Err(error) => Err(error),
                };
                Err(error.and_rollback(collected))
            }
        }
    }

    /// Makes the layer that the resumed machine will write.
    async fn begin_new_top(&self, record: &SandboxRecord) -> Result<LayerId, EngineError> {
        let old_id = self.top_of(record)?;
        let id = LayerId::random().map_err(LedgerError::from)?;
        let (old, new) = self
            .site
            .ledger
            .write("resume: record", Synchronous::Normal, |tx| {
                let mut old = tx
                    .layer(old_id)?
                    .ok_or_else(|| LedgerError::Missing(format!("layer {old_id}")))?;
                old.frozen = true;
                tx.put_layer(&old)?;
                let new = LayerRecord {
                    id,
                    template: old.template,
                    parent: self.parent_of_new_top(&old),
                    format: self.volumes.format_over(old.format),
                    size: old.size,
                    frozen: false,
                    created_at: Timestamp::now(),
                };
                tx.put_layer(&new)?;
                let mut sandbox = record.clone();
                sandbox.next_layer = Some(id);
                tx.put_sandbox(&sandbox)?;
                Ok::<_, EngineError>((old, new))
            })?;
        self.volumes
            .make_layer(&self.site, &new, Some(&old))
            .await?;
        Ok(id)
    }
}
