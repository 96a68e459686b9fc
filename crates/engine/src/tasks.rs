//! What runs in the background of an engine: the reaper of orphaned handles, the clock of TTLs, the look
//! at the disk's free space, and the ear for disks that break.

use std::sync::{Arc, Weak};

use cowslip_ledger::HandleRow;
use cowslip_model::HandleId;
use tokio::sync::mpsc;

use crate::Engine;

impl Engine {
    /// Starts them; they end with the engine.
    pub(crate) fn start_tasks(self: &Arc<Self>) {
        let (orphans, queue) = mpsc::unbounded_channel();
        self.site.ledger.on_orphan(move |id| {
            // A closed queue means that the engine is gone; the row is there for the next one.
            let _ = orphans.send(id);
        });
        tokio::spawn(reap(Arc::downgrade(self), queue));
        tokio::spawn(Self::expire_in_time(Arc::downgrade(self)));
        tokio::spawn(Self::keep_spares(Arc::downgrade(self)));
        tokio::spawn(Self::watch_the_disk(Arc::downgrade(self)));
        tokio::spawn(Self::watch_the_devices(Arc::downgrade(self)));
    }

    /// The row of an orphan that nothing else needs: one that others depend on is left to the
    /// unwinding of its owner.
    fn orphan(&self, id: HandleId) -> Option<HandleRow> {
        let rows = self.site.ledger.read(|tx| tx.handles()).ok()?;
        if rows.iter().any(|row| row.depends_on.contains(&id)) {
            return None;
        }
        rows.into_iter().find(|row| row.id == id)
    }
}

async fn reap(engine: Weak<Engine>, mut queue: mpsc::UnboundedReceiver<HandleId>) {
    while let Some(id) = queue.recv().await {
        let Some(engine) = engine.upgrade() else {
            return;
        };
        let Some(row) = engine.orphan(id) else {
            continue;
        };
        let what = row.describe();
        match engine.release_row(row).await {
            Ok(()) => tracing::debug!(what, "reaped an orphan"),
            Err(error) => tracing::warn!(what, %error, "an orphan stays in the ledger"),
        }
    }
}
