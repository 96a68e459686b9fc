//! What happens when a machine ends by itself.

use std::sync::Arc;

use cowslip_model::{SandboxId, SandboxState};

use crate::Engine;
use crate::error::EngineError;
use crate::live::Live;

impl Engine {
    /// Waits in the background for the end of this machine. An end that a verb brought about is that
    /// verb's business: it has taken the machine out of the table.
    pub(crate) fn watch(self: &Arc<Self>, id: SandboxId, live: Arc<Live>) {
        let engine = Arc::downgrade(self);
        tokio::spawn(async move {
            let last_words = live.machine.ended().await;
            let Some(engine) = engine.upgrade() else {
                return;
            };
            let _busy = engine.lock(id).await;
            if !engine.live.is(id, &live) {
                return;
            }
            if let Err(error) = engine.ended_by_itself(id, last_words).await {
                tracing::error!(sandbox = %id, %error, "settle a sandbox whose machine ended");
            }
        });
    }

    async fn ended_by_itself(
        self: &Arc<Self>,
        id: SandboxId,
        last_words: Option<String>,
    ) -> Result<(), EngineError> {
        let released = self.end_machine(id).await;
        let Some(record) = self.site.ledger.read(|tx| tx.sandbox(id))? else {
            return Ok(());
        };
        if record.auto_remove {
            released?;
            return self.remove_locked(id).await;
        }
        // A guest that powers off says nothing and is stopped; one that crashed has failed.
        match (last_words, released) {
            (None, Ok(())) => {
                self.settle(id, "watch: settle", SandboxState::Stopped, None)?;
                self.tell("sandbox.stopped", id)
            }
            (words, released) => {
                let words = words.unwrap_or_else(|| "the guest powered off".to_owned());
                let error = EngineError::Internal(format!("its machine ended: {words}"))
                    .and_rollback(released);
                self.settle(id, "watch: settle", SandboxState::Failed, Some(&error))
            }
        }
    }
}
