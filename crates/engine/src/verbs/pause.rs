//! `pause`: the sandbox's memory goes to disk and its machine ends.
//!
//! The image is published (`paused_image`, in a transaction that survives a power cut) *before* the
//! machine is ended: at every instant the sandbox is either its machine or its image (R31).

use std::sync::Arc;

use cowslip_ledger::{SandboxRecord, Synchronous, Tx};
use cowslip_model::api;
use cowslip_model::{SandboxId, SandboxState, Transition};

use crate::error::EngineError;
use crate::{Engine, blocking, to_the_end};

/// The paused image, in the sandbox's directory.
pub(crate) const IMAGE: &str = "paused";

impl Engine {
    /// Takes a running sandbox to disk and frees its memory.
    ///
    /// # Errors
    /// When it does not run, or its memory could not be saved: it runs on then.
    pub async fn pause(self: &Arc<Self>, reference: &str) -> Result<api::Sandbox, EngineError> {
        let id = self.find_sandbox(reference)?.id;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let _busy = engine.lock(id).await;
            let record = engine.pause_locked(id).await?;
            engine.view_sandbox(&record)
        })
        .await
    }

    /// The same; the caller holds the lock.
    pub(crate) async fn pause_locked(
        self: &Arc<Self>,
        id: SandboxId,
    ) -> Result<SandboxRecord, EngineError> {
        let record = self.begin(id, Transition::Pausing, "pause").await?;
        if let Err(error) = self.save_to_image(&record).await {
            return Err(self.run_on(&record, error).await);
        }
        // The image is the sandbox now; the machine is only to be released. What does not go is tried
        // again before a resume, and by recovery.
        if let Err(error) = self.end_machine(id).await {
            let settled = self.settle(id, "pause: settle", SandboxState::Paused, Some(&error));
            return Err(error.and_rollback(settled));
        }
        self.change(id, "pause: end", Synchronous::Normal, |sandbox, tx| {
            sandbox.state = SandboxState::Paused;
            sandbox.transition = None;
            tx.emit(
                "sandbox.paused",
                id,
                Some(&sandbox.name),
                serde_json::json!({}),
            )
            .map(Some)
        })
    }

    async fn save_to_image(&self, record: &SandboxRecord) -> Result<(), EngineError> {
        self.refuse_long_chain(record)?;
        let live = self.live(record)?;
        // A checkpoint may have left open which layer the guest writes: the image belongs to that one.
        self.settle_swap(record.id).await?;
        let record = &self.current(record.id)?;
        self.discard_image(record.id)?;
        let forget = |sandbox: &mut SandboxRecord, _: &mut Tx<'_>| {
            sandbox.memory_base = None;
            Ok(None)
        };
        if record.memory_base.is_some() {
            self.change(record.id, "pause: save", Synchronous::Normal, forget)?;
        }
        let image = self.site.layout.sandbox(record.id).join(IMAGE);
        live.machine.pause().await?;
        let bytes = live.machine.save(&image, None).await?.bytes;
        let top = self.top_of(record)?;
        if let Some(layer) = self.site.ledger.read(|tx| tx.layer(top))? {
            self.volumes.write_out(&self.site, record.id).await?;
            self.volumes.sync(&self.site, &layer).await?;
        }
        let host = Arc::clone(&self.site.host);
        blocking(move || {
            host.sync(&image)?;
            image
                .parent()
                .map_or(Ok(()), |directory| host.sync(directory))
        })
        .await??;
        tracing::debug!(sandbox = %record.name, bytes, "saved");
        self.change(
            record.id,
            "pause: publish",
            Synchronous::Full,
            |sandbox, _| {
                sandbox.paused_image = true;
                Ok(None)
            },
        )
        .map(drop)
    }

    /// After a failed save the sandbox goes on; if even that fails it is `failed`, never a frozen one
    /// that is shown as running (R30).
    async fn run_on(&self, record: &SandboxRecord, error: EngineError) -> EngineError {
        let id = record.id;
        let live = self.live.get(id);
        let resumed = match &live {
            Some(live) => live.resume().await.map_err(EngineError::from),
            None => Err(EngineError::Internal("its machine is gone".to_owned())),
        };
        match resumed {
            Ok(()) => {
                if let Some(live) = &live {
                    self.catch_up(record, live).await;
                }
                error.and_rollback(self.keep_running(id, "pause: give up"))
            }
            Err(resume_error) => {
                let error = error.and_resume(Err(resume_error));
                let ended = self.end_machine(id).await;
                let settled = self.settle(id, "pause: settle", SandboxState::Failed, Some(&error));
                error.and_rollback(ended.and(settled))
            }
        }
    }

    /// Writes down that the machine is the sandbox, and removes an image of it.
    pub(crate) fn keep_running(&self, id: SandboxId, step: &str) -> Result<(), EngineError> {
        self.change(id, step, Synchronous::Normal, |sandbox, _| {
            sandbox.transition = None;
            sandbox.paused_image = false;
            Ok(None)
        })?;
        self.discard_image(id)
    }

    /// Removes a paused image that is no longer (or not yet) the sandbox.
    pub(crate) fn discard_image(&self, id: SandboxId) -> Result<(), EngineError> {
        let image = self.site.layout.sandbox(id).join(IMAGE);
        Ok(self.site.host.remove_file(&image)?)
    }
}
