//! TTLs. One is tied to a sandbox's id, so it can never end a later sandbox of the same name (R35).

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use cowslip_ledger::{SandboxRecord, Synchronous};
use cowslip_model::{OnExpiry, SandboxId, SandboxState, Timestamp};

use crate::Engine;
use crate::error::EngineError;

/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(30);
/// The clock is looked at again after this at the latest: it may have been set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// What processes get to end where a sandbox is stopped.
const GRACE: Duration = Duration::from_secs(10);

impl Engine {
    /// Ends sandboxes as their time comes, until the engine is gone. What fails for one keeps no other waiting.
    pub(crate) async fn expire_in_time(engine: Weak<Self>) {
        let mut failed: HashMap<SandboxId, Instant> = HashMap::new();
        loop {
            let Some(strong) = engine.upgrade() else {
                return;
            };
            let all = strong.expiries().unwrap_or_else(|error| {
                tracing::error!(%error, "read the TTLs");
                Vec::new()
            });
            let now = Timestamp::now();
            failed.retain(|_, at| at.elapsed() < RETRY);
            let mut wait = LOOK_AGAIN;
            for (id, at) in all {
                if let Some(since) = failed.get(&id) {
                    wait = wait.min(RETRY.saturating_sub(since.elapsed()));
                } else if at > now {
                    wait = wait.min(at.since(now));
                } else if let Err(error) = strong.expire(id, now).await {
                    tracing::error!(sandbox = %id, %error, "end an expired sandbox");
                    failed.insert(id, Instant::now());
                    wait = wait.min(RETRY);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
                () = strong.ttl_changed.notified() => {}
            }
        }
    }

    fn expiries(&self) -> Result<Vec<(SandboxId, Timestamp)>, EngineError> {
        let all = self.site.ledger.read(|tx| tx.sandboxes())?;
        let expiry = |one: &SandboxRecord| one.expires_at.map(|at| (one.id, at));
        Ok(all.iter().filter_map(expiry).collect())
    }

    /// Ends a sandbox whose time has come by `now`, as it asked for. Its clock calls this.
    ///
    /// # Errors
    /// When it could not be ended: its time is still over then.
    pub async fn expire(
        self: &Arc<Self>,
        id: SandboxId,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let _busy = self.lock(id).await;
        let Some(record) = self.site.ledger.read(|tx| tx.sandbox(id))? else {
            return Ok(());
        };
        // It may have been given more while its lock was waited for.
        if record.expires_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.tell("sandbox.expired", id)?;
        match (record.spec.on_expiry, record.state) {
            (OnExpiry::Remove, _) => return self.remove_locked(id).await,
            (OnExpiry::Pause, SandboxState::Running) => {
                self.pause_locked(id).await?;
            }
            (OnExpiry::Stop, SandboxState::Running) => {
                self.stop_locked(id, GRACE).await?;
            }
            // It has no machine that could be ended; its disk and its memory are what it asked to keep.
            (OnExpiry::Pause | OnExpiry::Stop, _) => {}
        }
        self.change(id, "expire: publish", Synchronous::Normal, |sandbox, _| {
            sandbox.expires_at = None;
            Ok(None)
        })
        .map(drop)
    }
}
