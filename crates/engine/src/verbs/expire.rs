//! TTLs. One is tied to a sandbox's id, so it can never end a later sandbox of the same name (R35).

use std::sync::Weak;
use std::time::Duration;

use cowslip_model::{SandboxId, Timestamp};

use crate::Engine;
use crate::error::EngineError;

/// A removal that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(30);
/// The clock is looked at again after this at the latest: it may have been set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Engine {
    /// Removes sandboxes as their time comes, until the engine is gone.
    pub(crate) async fn expire_in_time(engine: Weak<Self>) {
        let mut failed = false;
        loop {
            let Some(strong) = engine.upgrade() else {
                return;
            };
            let due = match strong.next_expiry() {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "read the TTLs");
                    None
                }
            };
            let now = Timestamp::now();
            let wait = match due {
                Some((id, at)) if at <= now && !failed => {
                    failed = strong.expire(id).await.is_err();
                    continue;
                }
                Some((_, at)) => at.since(now).min(LOOK_AGAIN),
                None => LOOK_AGAIN,
            };
            let wait = if failed {
                RETRY
            } else {
                wait.max(Duration::from_millis(1))
            };
            failed = false;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = strong.ttl_changed.notified() => {}
            }
        }
    }

    fn next_expiry(&self) -> Result<Option<(SandboxId, Timestamp)>, EngineError> {
        let all = self.site.ledger.read(|tx| tx.sandboxes())?;
        Ok(all
            .iter()
            .filter_map(|one| one.expires_at.map(|at| (one.id, at)))
            .min_by_key(|one| one.1))
    }

    async fn expire(&self, id: SandboxId) -> Result<(), EngineError> {
        let _busy = self.lock(id).await;
        self.tell("sandbox.expired", id)?;
        let removed = self.remove_locked(id).await;
        if let Err(error) = &removed {
            tracing::error!(sandbox = %id, %error, "remove an expired sandbox");
        }
        removed
    }
}
