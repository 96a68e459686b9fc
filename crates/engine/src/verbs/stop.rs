//! `stop`: the guest syncs and powers off in bounded time, or is killed (R36).

use std::sync::Arc;
use std::time::Duration;

use cowslip_ledger::{SandboxRecord, Synchronous};
use cowslip_model::api::{self, StopRequest};
use cowslip_model::{SandboxId, SandboxState, Transition};

use crate::error::EngineError;
use crate::{Engine, to_the_end};

/// What processes get to end, unless the request says otherwise.
const GRACE: Duration = Duration::from_secs(10);
/// The longest that may be asked for.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// What the guest gets beyond that to sync and power off.
const POWER_OFF: Duration = Duration::from_secs(20);

impl Engine {
    /// Ends the sandbox's machine; its disk stays. A paused sandbox loses its memory.
    ///
    /// # Errors
    /// When it has no machine, or what it held could not be released.
    pub async fn stop(
        self: &Arc<Self>,
        reference: &str,
        request: StopRequest,
    ) -> Result<api::Sandbox, EngineError> {
        let id = self.find_sandbox(reference)?.id;
        let engine = Arc::clone(self);
        let grace = request
            .timeout
            .map_or(GRACE, Duration::from_secs)
            .min(GRACE_MAX);
        to_the_end(async move {
            let _busy = engine.lock(id).await;
            let record = engine.stop_locked(id, grace).await?;
            engine.view_sandbox(&record)
        })
        .await
    }

    /// The same; the caller holds the lock. A `grace` of zero kills at once.
    pub(crate) async fn stop_locked(
        self: &Arc<Self>,
        id: SandboxId,
        grace: Duration,
    ) -> Result<SandboxRecord, EngineError> {
        let record = self.begin(id, Transition::Stopping, "stop").await?;
        self.shut_down(&record, grace).await;
        if let Err(error) = self.end_machine(id).await {
            let settled = self.settle(id, "stop: settle", SandboxState::Failed, Some(&error));
            return Err(error.and_rollback(settled));
        }
        if let Err(error) = self.sync_disk(&record).await {
            self.settle(id, "stop: settle", SandboxState::Failed, Some(&error))?;
            return Err(error);
        }
        let had_image = record.paused_image;
        let record = self.change(id, "stop: publish", Synchronous::Normal, |sandbox, tx| {
            sandbox.state = SandboxState::Stopped;
            sandbox.transition = None;
            sandbox.reason = None;
            sandbox.paused_image = false;
            tx.emit(
                "sandbox.stopped",
                id,
                Some(&sandbox.name),
                serde_json::json!({}),
            )
            .map(Some)
        })?;
        if had_image {
            self.discard_image(id)?;
        }
        Ok(record)
    }

    /// What is told to be stopped survives a power cut.
    pub(crate) async fn sync_disk(&self, record: &SandboxRecord) -> Result<(), EngineError> {
        let Some(top) = record.layer else {
            return Ok(());
        };
        let Some(top) = self.site.ledger.read(|tx| tx.layer(top))? else {
            return Ok(());
        };
        Ok(self.volumes.sync(&self.site, &top).await?)
    }

    /// Asks the guest to power off and waits for that, as long as `grace` and no longer than a guest
    /// that works would need: a wedged one is killed by what comes next.
    pub(crate) async fn shut_down(&self, record: &SandboxRecord, grace: Duration) {
        // A guest that stands still cannot answer.
        if grace.is_zero() || self.water.is_frozen(record.id) {
            return;
        }
        let Some(live) = self.live.get(record.id) else {
            return;
        };
        let polite = async {
            let guest = self.guest(record, &live).await?;
            guest.shutdown(grace).await?;
            // The agent cuts the power once its answer has arrived, and knows that by the end of the
            // connection; else it waits half a second.
            drop(guest);
            live.forget_guest();
            drop(live.machine.ended().await);
            Ok::<_, EngineError>(())
        };
        let polite = async {
            if let Err(error) = polite.await {
                tracing::warn!(sandbox = %record.name, %error, "the guest does not shut down; it is killed");
            }
        };
        if tokio::time::timeout(grace + POWER_OFF, polite)
            .await
            .is_err()
        {
            tracing::warn!(sandbox = %record.name, "the guest did not power off in time; it is killed");
        }
    }
}
