//! `start`: a cold boot on the sandbox's volume.

use std::sync::Arc;

use cowslip_ledger::{SandboxRecord, Synchronous};
use cowslip_model::api;
use cowslip_model::{OnExpiry, SandboxId, SandboxState, Timestamp, Transition};

use crate::error::EngineError;
use crate::verbs::boot::{Origin, StartTimes, Started};
use crate::verbs::checkpoint::micros;
use crate::{Engine, to_the_end};

impl Engine {
    /// Boots a stopped (or failed) sandbox. It runs when its agent has answered.
    ///
    /// # Errors
    /// When it does not come up; no machine is left, and the sandbox is `failed` with the reason.
    pub async fn start(self: &Arc<Self>, reference: &str) -> Result<api::Sandbox, EngineError> {
        let id = self.find_sandbox(reference)?.id;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let _busy = engine.lock(id).await;
            let (record, _) = engine.start_locked(id).await?;
            engine.view_sandbox(&record)
        })
        .await
    }

    /// The same; the caller holds the lock.
    pub(crate) async fn start_locked(
        self: &Arc<Self>,
        id: SandboxId,
    ) -> Result<(SandboxRecord, StartTimes), EngineError> {
        let record = self.begin(id, Transition::Starting, "start").await?;
        let outcome = async {
            // A failed sandbox may still hold what its end could not release.
            self.end_machine(id).await?;
            self.settle_swap(id).await?;
            let record = self
                .site
                .ledger
                .read(|tx| tx.sandbox(id))?
                .unwrap_or(record);
            let top = self.top_of(&record)?;
            let started = self.start_machine(&record, top, Origin::Kernel).await?;
            let times = started.times.clone();
            let record = self.publish_running(id, "start: publish", started, |sandbox| {
                // The process that `run` started ended with the machine it ran in.
                sandbox.main = sandbox.main.take().filter(|main| main.exit_code.is_some());
            })?;
            Ok((record, times))
        };
        match outcome.await {
            Ok(done) => Ok(done),
            Err(error) => {
                let ended = self.end_machine(id).await;
                let settled = self.settle(id, "start: settle", SandboxState::Failed, Some(&error));
                Err(error.and_rollback(ended.and(settled)))
            }
        }
    }

    /// Records that the machine runs, and watches it from now on.
    pub(crate) fn publish_running(
        self: &Arc<Self>,
        id: SandboxId,
        step: &str,
        started: Started,
        more: impl FnOnce(&mut SandboxRecord),
    ) -> Result<SandboxRecord, EngineError> {
        let Started {
            live,
            boot_times,
            monitor,
            times,
            image: _,
        } = started;
        let record = self.change(id, step, Synchronous::Normal, |sandbox, tx| {
            sandbox.state = SandboxState::Running;
            sandbox.transition = None;
            sandbox.reason = None;
            sandbox.monitor = Some(monitor);
            sandbox.started_at = Some(Timestamp::now());
            sandbox.phases.clone_from(&times.phases);
            sandbox.memory_base = None;
            // One that is to be kept has its time anew with every run.
            if let (Some(ttl), OnExpiry::Pause | OnExpiry::Stop) =
                (sandbox.spec.ttl, sandbox.spec.on_expiry)
            {
                sandbox.expires_at = Some(Timestamp::now().after(ttl.duration()));
            }
            more(sandbox);
            let detail = serde_json::json!({
                "monitor_us": micros(times.monitor),
                "guest_us": micros(times.guest),
                "kernel_us": boot_times.kernel_us,
                "agent_us": boot_times.agent_us,
            });
            tx.emit("sandbox.started", id, Some(&sandbox.name), detail)
                .map(Some)
        })?;
        self.ttl_changed.notify_one();
        self.live.insert(id, Arc::clone(&live));
        self.watch(id, Arc::clone(&live));
        self.follow_main_again(&record, &live);
        Ok(record)
    }
}
