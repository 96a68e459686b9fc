//! The host's disk is nearly full: guests stand still until there is space again (R28).
//!
//! A guest whose write the host's disk refuses would see an I/O error, or lose its layer. So the vCPUs
//! stand still before that, with an event; nothing is lost, and they go on when space was freed. The
//! kernel tells no event of free space: it is looked at, the sooner the less there is.

use std::sync::{Arc, Weak};
use std::time::Duration;

use cowslip_host::usage::Space;
use cowslip_ledger::Synchronous;
use cowslip_model::{ByteSize, SandboxId, SandboxState};

use crate::error::EngineError;
use crate::water::{Change, Marks};
use crate::{Engine, blocking};

/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(5);

impl Engine {
    /// Looks at the disk until the engine is gone.
    pub(crate) async fn watch_the_disk(engine: Weak<Self>) {
        loop {
            let Some(strong) = engine.upgrade() else {
                return;
            };
            let wait = strong.check_the_disk().await.unwrap_or_else(|error| {
                tracing::error!(%error, "look at the free space");
                AGAIN
            });
            let found = Arc::clone(&strong.space_found);
            drop(strong);
            let _ = tokio::time::timeout(wait, found.notified()).await;
        }
    }

    /// Looks at the disk once, and freezes or thaws accordingly. Gives when to look again.
    ///
    /// # Errors
    /// When the disk does not tell.
    pub async fn check_the_disk(self: &Arc<Self>) -> Result<Duration, EngineError> {
        let (change, wait) = self.look_at_the_disk().await?;
        if let Err(error) = self.site.ledger.renew_ballast() {
            tracing::debug!(%error, "the ledger has no ballast for a full disk");
        }
        match change {
            Change::Low => self.tell_of_the_disk("disk.low")?,
            Change::Recovered => self.tell_of_the_disk("disk.recovered")?,
            Change::None => {}
        }
        if self.water.low().is_some() {
            for record in self.site.ledger.read(|tx| tx.sandboxes())? {
                if record.state == SandboxState::Running && !self.water.is_frozen(record.id) {
                    self.freeze_for_space(record.id).await;
                }
            }
        } else {
            for id in self.water.frozen() {
                self.thaw_with_space(id).await;
            }
        }
        Ok(wait)
    }

    /// Only looks.
    pub(crate) async fn look_at_the_disk(&self) -> Result<(Change, Duration), EngineError> {
        let (host, state) = (
            Arc::clone(&self.site.host),
            self.site.layout.state().to_owned(),
        );
        let space = blocking(move || host.space(&state)).await??;
        Ok(self.take_in(space))
    }

    fn take_in(&self, space: Space) -> (Change, Duration) {
        let marks = Marks::new(self.config.storage.low_water, space.total);
        (self.water.look(space, marks), marks.next_look(space.free))
    }

    fn tell_of_the_disk(&self, kind: &str) -> Result<(), EngineError> {
        let state = self.site.layout.state().display().to_string();
        if let Some(space) = self.water.low() {
            tracing::warn!(state, free = %ByteSize(space.free), "the disk is nearly full: guests stand still");
        } else {
            tracing::info!(state, "there is space on the disk again: guests go on");
        }
        let free = self.water.low().map(|space| space.free);
        let event = self
            .site
            .ledger
            .write("disk: tell", Synchronous::Normal, |tx| {
                tx.emit(kind, &state, None, serde_json::json!({ "free": free }))
            })?;
        self.announce(event);
        Ok(())
    }

    /// Lets a sandbox's vCPUs stand still. One that a verb works on is left to the next look: that verb
    /// may wait for the guest.
    async fn freeze_for_space(&self, id: SandboxId) {
        let Some(_busy) = self.try_lock(id) else {
            return;
        };
        let Some(live) = self.live.get(id) else {
            return;
        };
        let paused = live.machine.pause().await.map_err(EngineError::from);
        if paused.is_ok() {
            self.water.freeze(id);
        }
        if let Err(error) = paused.and_then(|()| self.tell("sandbox.frozen", id)) {
            tracing::error!(sandbox = %id, %error, "freeze a sandbox on a full disk");
        }
    }

    async fn thaw_with_space(&self, id: SandboxId) {
        let _busy = self.lock(id).await;
        let Some(live) = self.live.get(id) else {
            self.water.thaw(id);
            return;
        };
        let resumed = live.machine.resume().await.map_err(EngineError::from);
        if resumed.is_ok() {
            self.water.thaw(id);
        }
        if let Err(error) = resumed.and_then(|()| self.tell("sandbox.thawed", id)) {
            tracing::error!(sandbox = %id, %error, "thaw a sandbox; it is tried again");
            return;
        }
        if let Some(guest) = live.guest()
            && let Err(error) = guest.set_clock().await
        {
            tracing::warn!(sandbox = %id, %error, "the guest's clock lost the time it stood still");
        }
    }

    /// Refuses what would need space while there is too little. Nobody is refused for space that was
    /// freed since the last look: then it looks again.
    pub(crate) fn refuse_without_space(&self, verb: &str) -> Result<(), EngineError> {
        if self.water.low().is_none() {
            return Ok(());
        }
        let state = self.site.layout.state();
        let space = self.site.host.space(state)?;
        if self.take_in(space).0 == Change::Recovered {
            self.tell_of_the_disk("disk.recovered")?;
            self.space_found.notify_one();
        }
        if self.water.low().is_none() {
            return Ok(());
        }
        Err(EngineError::NoSpace(format!(
            "{verb}: the disk of \"{}\" is nearly full ({} free): free some space, by cowslip rm, or by \
             cowslip gc",
            state.display(),
            ByteSize(space.free)
        )))
    }

    /// Refuses to talk to a guest that stands still.
    pub(crate) fn refuse_frozen(&self, id: SandboxId, name: &str) -> Result<(), EngineError> {
        if self.water.is_frozen(id) {
            return Err(EngineError::Frozen {
                name: name.to_owned(),
            });
        }
        Ok(())
    }
}
