//! `start`: a cold boot on the sandbox's volume.

use std::sync::Arc;

use cowslip_ledger::{EventRecord, LedgerError, SandboxRecord, Synchronous};
use cowslip_model::api;
use cowslip_model::{OnExpiry, SandboxId, SandboxState, Timestamp, Transition};

use crate::error::EngineError;
use crate::live::Live;
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
        let published = self.publish_all_running(step, vec![(id, started, more)])?;
        let record = published.into_iter().next();
        record.ok_or_else(|| EngineError::Internal("a sandbox was not published".to_owned()))
    }

    /// The same for several: all of them, or none.
    pub(crate) fn publish_all_running<F: FnOnce(&mut SandboxRecord)>(
        self: &Arc<Self>,
        step: &str,
        machines: Vec<(SandboxId, Started, F)>,
    ) -> Result<Vec<SandboxRecord>, EngineError> {
        let published = self
            .site
            .ledger
            .write(step, Synchronous::Normal, move |tx| {
                let mut published = Vec::new();
                for (id, started, more) in machines {
                    let mut sandbox = tx
                        .sandbox(id)?
                        .ok_or_else(|| LedgerError::Missing(format!("sandbox {id}")))?;
                    runs_now(&mut sandbox, &started);
                    more(&mut sandbox);
                    tx.put_sandbox(&sandbox)?;
                    let Started {
                        live,
                        boot_times,
                        times,
                        ..
                    } = started;
                    let detail = serde_json::json!({
                        "monitor_us": micros(times.monitor),
                        "guest_us": micros(times.guest),
                        "kernel_us": boot_times.kernel_us,
                        "agent_us": boot_times.agent_us,
                    });
                    let event = tx.emit("sandbox.started", id, Some(&sandbox.name), detail)?;
                    published.push((sandbox, live, event));
                }
                Ok::<_, EngineError>(published)
            })?;
        self.ttl_changed.notify_one();
        let record = |(record, live, event): (SandboxRecord, Arc<Live>, EventRecord)| {
            self.announce(event);
            self.live.insert(record.id, Arc::clone(&live));
            self.watch(record.id, Arc::clone(&live));
            self.follow_main_again(&record, &live);
            record
        };
        Ok(published.into_iter().map(record).collect())
    }
}

/// What a sandbox's record says once its machine runs.
fn runs_now(sandbox: &mut SandboxRecord, started: &Started) {
    sandbox.state = SandboxState::Running;
    sandbox.transition = None;
    sandbox.reason = None;
    // What it is connected to was made by this record.
    sandbox.network_pending = false;
    sandbox.monitor = Some(started.monitor.clone());
    sandbox.started_at = Some(Timestamp::now());
    sandbox.phases.clone_from(&started.times.phases);
    sandbox.memory_base = None;
    // One that is to be kept has its time anew with every run.
    if let (Some(ttl), OnExpiry::Pause | OnExpiry::Stop) =
        (sandbox.spec.ttl, sandbox.spec.on_expiry)
    {
        sandbox.expires_at = Some(Timestamp::now().after(ttl.duration()));
    }
}
