//! `events`: what happened, and what happens.

use cowslip_ledger::Synchronous;
use cowslip_model::{SandboxId, api};

use crate::Engine;
use crate::error::EngineError;

/// Events in one answer at most.
const LIMIT_MAX: u32 = 10_000;

impl Engine {
    /// Events numbered above `after`, the newest `limit` of them.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn events(&self, after: i64, limit: u32) -> Result<Vec<api::Event>, EngineError> {
        let found = self
            .site
            .ledger
            .read(|tx| tx.events(after, limit.min(LIMIT_MAX)))?;
        Ok(found.into_iter().map(crate::view::event).collect())
    }

    /// Records and announces an event of a sandbox that changes nothing else.
    pub(crate) fn tell(&self, kind: &str, id: SandboxId) -> Result<(), EngineError> {
        let event = self.site.ledger.write("event", Synchronous::Normal, |tx| {
            let name = tx.sandbox(id)?.map(|sandbox| sandbox.name);
            tx.emit(kind, id, name.as_ref(), serde_json::json!({}))
        })?;
        self.announce(event);
        Ok(())
    }
}
