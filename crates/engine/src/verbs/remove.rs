//! `rm`: everything of a sandbox goes: machine, directory, layers that nothing else stands on.

use std::sync::Arc;

use cowslip_ledger::{Owner, SandboxRecord, Synchronous};
use cowslip_model::{Name, SandboxId, SandboxState, Transition};

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::{Engine, blocking, to_the_end};

impl Engine {
    /// Removes a sandbox. One that runs is only removed by `force`.
    ///
    /// # Errors
    /// When it runs, or something could not be released: the sandbox is `failed` then and its
    /// removal can be tried again.
    pub async fn remove(self: &Arc<Self>, reference: &str, force: bool) -> Result<(), EngineError> {
        let record = self.find_sandbox(reference)?;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let id = record.id;
            // Waiting for a start, or a step of a build, would keep `rm --force` from ending it.
            let may_take_long = [Transition::Starting, Transition::Creating].map(Some);
            if force && may_take_long.contains(&record.transition) {
                engine.boots.call_off(id);
            }
            let _busy = engine.lock(id).await;
            engine.boots.forget(id);
            let found = engine.site.ledger.read(|tx| tx.sandbox(id))?;
            // Another verb removed it meanwhile, as a `run` does whose boot this ended.
            let Some(record) = found else {
                return Ok(());
            };
            if record.state == SandboxState::Running && !force {
                return Err(EngineError::State {
                    verb: "remove",
                    name: record.name,
                    state: record.state,
                    reason: None,
                });
            }
            engine.remove_locked(id).await
        })
        .await
    }

    /// Removes what is left of a sandbox of that name which was never whole and which nobody works on: its
    /// verb failed, and its clean-up too.
    pub(crate) async fn remove_left_over(&self, name: &Name) -> Result<(), EngineError> {
        let found = self.site.ledger.read(|tx| tx.sandbox_named(name))?;
        let half_made = |one: &SandboxRecord| one.state == SandboxState::Creating;
        let Some(left) = found.filter(half_made) else {
            return Ok(());
        };
        // Whoever makes it has its lock.
        let Some(_busy) = self.try_lock(left.id) else {
            return Ok(());
        };
        let found = self.site.ledger.read(|tx| tx.sandbox(left.id))?;
        if !found.as_ref().is_some_and(half_made) {
            return Ok(());
        }
        tracing::warn!(sandbox = %left.name, "a sandbox that was never whole was left; it goes");
        self.remove_locked(left.id).await
    }

    /// Removes a sandbox in whatever state; the caller holds its lock. Can be tried again.
    pub(crate) async fn remove_locked(&self, id: SandboxId) -> Result<(), EngineError> {
        let found = self.site.ledger.read(|tx| tx.sandbox(id))?;
        let Some(record) = found else { return Ok(()) };
        if record.transition != Some(Transition::Removing) {
            self.mark(id, Transition::Removing, "remove")?;
        }
        let outcome = async {
            // The machine first: nothing it uses may go before it has ended (R13).
            self.end_machine(id).await?;
            let site = self.site.clone();
            blocking(move || unwind(&site, Owner::Sandbox(id))).await??;
            // From the record's end until its layers are collected nobody takes them for left over.
            let collecting = self.collecting.lock().await;
            let event = self
                .site
                .ledger
                .write("remove: publish", Synchronous::Normal, |tx| {
                    tx.delete_sandbox(id)?;
                    let detail = serde_json::json!({});
                    tx.emit("sandbox.removed", id, Some(&record.name), detail)
                })?;
            Ok::<_, EngineError>((event, collecting))
        };
        match outcome.await {
            Ok((event, collecting)) => {
                self.announce(event);
                self.ttl_changed.notify_one();
                self.collect(&collecting).await.map(drop)
            }
            Err(error) => {
                // One that was never whole is nothing to keep: whoever wants its name removes it first.
                let state = match record.state {
                    SandboxState::Creating => SandboxState::Creating,
                    _ => SandboxState::Failed,
                };
                let settled = self.settle(id, "remove: settle", state, Some(&error));
                Err(error.and_rollback(settled))
            }
        }
    }
}
