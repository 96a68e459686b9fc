//! Changing a sandbox's record: every verb's transitions go through here.

use std::sync::Arc;

use cowslip_ledger::{EventRecord, LedgerError, SandboxRecord, Synchronous, Tx};
use cowslip_model::{SandboxId, SandboxState, Transition};

use crate::Engine;
use crate::error::{EngineError, chain};
use crate::network::refuse_taken;

impl Engine {
    /// Changes a sandbox's record in one transaction and announces the event that `work` emitted.
    pub(crate) fn change(
        &self,
        id: SandboxId,
        step: &str,
        durability: Synchronous,
        work: impl FnOnce(&mut SandboxRecord, &mut Tx<'_>) -> Result<Option<EventRecord>, LedgerError>,
    ) -> Result<SandboxRecord, EngineError> {
        let (record, event) = self.site.ledger.write(step, durability, |tx| {
            let mut record = tx
                .sandbox(id)?
                .ok_or_else(|| LedgerError::Missing(format!("sandbox {id}")))?;
            let event = work(&mut record, tx)?;
            tx.put_sandbox(&record)?;
            Ok::<_, EngineError>((record, event))
        })?;
        if let Some(event) = event {
            self.announce(event);
        }
        Ok(record)
    }

    /// The sandbox's record as it is now.
    pub(crate) fn current(&self, id: SandboxId) -> Result<SandboxRecord, EngineError> {
        self.site
            .ledger
            .read(|tx| tx.sandbox(id))?
            .ok_or_else(|| gone(id))
    }

    /// Marks that `transition` begins, if the sandbox's state allows it (R38). The caller holds the
    /// sandbox's lock, so a transition that it still is in belongs to nobody: that one is ended first.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        id: SandboxId,
        transition: Transition,
        verb: &'static str,
    ) -> Result<SandboxRecord, EngineError> {
        let found = self.site.ledger.read(|tx| tx.sandbox(id))?;
        if let Some(record) = found.filter(|record| record.transition.is_some()) {
            self.finish_interrupted(record).await?;
        }
        self.mark(id, transition, verb)
    }

    /// The same, whatever transition it is in.
    pub(crate) fn mark(
        &self,
        id: SandboxId,
        transition: Transition,
        verb: &'static str,
    ) -> Result<SandboxRecord, EngineError> {
        let found = self.site.ledger.read(|tx| tx.sandbox(id))?;
        let record = found.ok_or_else(|| gone(id))?;
        if !record.state.allows(transition) {
            return Err(EngineError::State {
                verb,
                name: record.name,
                state: record.state,
                reason: record.reason,
            });
        }
        if matches!(
            transition,
            Transition::Starting
                | Transition::Resuming
                | Transition::Checkpointing
                | Transition::Pausing
        ) {
            self.refuse_without_space(verb)?;
        }
        let step = format!("{verb}: begin");
        self.site.ledger.write(&step, Synchronous::Normal, |tx| {
            let mut sandbox = tx.sandbox(id)?.ok_or_else(|| gone(id))?;
            if matches!(transition, Transition::Starting | Transition::Resuming) {
                refuse_taken(tx, id, &sandbox.spec.network)?;
            }
            sandbox.transition = Some(transition);
            tx.put_sandbox(&sandbox)?;
            Ok(sandbox)
        })
    }

    /// Ends a transition in `state`, with the reason where that is a failure.
    pub(crate) fn settle(
        &self,
        id: SandboxId,
        step: &str,
        state: SandboxState,
        reason: Option<&EngineError>,
    ) -> Result<(), EngineError> {
        let reason = reason.map(|error| chain(error).join(": "));
        self.change(id, step, Synchronous::Normal, |sandbox, tx| {
            sandbox.state = state;
            sandbox.transition = None;
            sandbox.reason.clone_from(&reason);
            if state == SandboxState::Failed {
                let detail = serde_json::json!({ "reason": reason });
                return tx
                    .emit("sandbox.failed", id, Some(&sandbox.name), detail)
                    .map(Some);
            }
            Ok(None)
        })
        .map(drop)
    }
}

/// The sandbox went while the verb waited for its turn.
pub(crate) fn gone(id: SandboxId) -> EngineError {
    EngineError::NotFound {
        kind: "sandbox",
        reference: id.to_string(),
        near: Vec::new(),
    }
}
