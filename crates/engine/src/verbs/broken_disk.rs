//! A disk that takes no more writes.
//!
//! When the host's disk refuses a write to a layer, the kernel gives the whole layer up: every further
//! read and write of the guest fails. The low-water mark (`low_water.rs`) is there so that it does not
//! come to that; where it does, the kernel's event is heard, the machine is ended before its guest goes
//! on for long on a disk that lies, and the sandbox has failed with the reason. What the layer had taken
//! until then is whole, and the next start uses it (`store/dm/devices.rs`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use cowslip_host::dm::{Broken, DeviceEvents};
use cowslip_ledger::SandboxRecord;
use cowslip_model::{LayerId, SandboxId, SandboxState};
use cowslip_store::Backend;

use crate::error::EngineError;
use crate::{Engine, blocking};

/// After a machine that could not be ended.
const AGAIN: Duration = Duration::from_secs(2);

impl Engine {
    /// Listens to device-mapper until the engine is gone; on other backends there is nothing to hear.
    pub(crate) async fn watch_the_devices(engine: Weak<Self>) {
        let Some(strong) = engine.upgrade() else {
            return;
        };
        if strong.volumes.backend() != Backend::Dm {
            return;
        }
        let events = match DeviceEvents::open(strong.site.ledger.instance()) {
            Ok(events) => Arc::new(events),
            Err(error) => {
                tracing::error!(%error, "a disk that breaks will not be noticed");
                return;
            }
        };
        drop(strong);
        // Those whose machines could not be ended yet.
        let mut left: Vec<Broken> = Vec::new();
        loop {
            let Some(strong) = engine.upgrade() else {
                return;
            };
            match strong.look_at_the_devices(&events).await {
                Ok(found) => left.extend(found),
                Err(error) => tracing::error!(%error, "look for broken disks"),
            }
            let mut failed = Vec::new();
            for broken in left {
                if let Err(error) = strong.end_over_broken(&broken).await {
                    tracing::error!(%error, layer = broken.layer, "end a machine on a broken disk");
                    failed.push(broken);
                }
            }
            left = failed;
            drop(strong);
            let heard = if left.is_empty() {
                events.next().await
            } else {
                let again = tokio::time::timeout(AGAIN, events.next()).await;
                again.unwrap_or(Ok(()))
            };
            if let Err(error) = heard {
                tracing::error!(%error, "a disk that breaks will not be noticed any more");
                return;
            }
        }
    }

    async fn look_at_the_devices(
        &self,
        events: &Arc<DeviceEvents>,
    ) -> Result<Vec<Broken>, EngineError> {
        let events = Arc::clone(events);
        Ok(blocking(move || events.broken()).await??)
    }

    /// Ends the machines whose disks have the broken layer.
    async fn end_over_broken(&self, broken: &Broken) -> Result<(), EngineError> {
        let Ok(layer) = broken.layer.parse::<LayerId>() else {
            return Ok(());
        };
        for record in self.site.ledger.read(|tx| tx.sandboxes())? {
            if self.runs_on(record.id, layer)?.is_none() {
                continue;
            }
            let _busy = self.lock(record.id).await;
            // The verb that had the lock may have ended it.
            let Some(record) = self.runs_on(record.id, layer)? else {
                continue;
            };
            let error = EngineError::BrokenDisk {
                name: record.name.to_string(),
                state: broken.state.clone(),
            };
            tracing::error!(sandbox = %record.id, %layer, %error, "end a machine");
            let ended = self.end_machine(record.id).await;
            let error = error.and_rollback(ended);
            self.settle(
                record.id,
                "broken disk: settle",
                SandboxState::Failed,
                Some(&error),
            )?;
        }
        Ok(())
    }

    /// The sandbox, if it runs by the ledger and its disk has the layer.
    fn runs_on(&self, id: SandboxId, layer: LayerId) -> Result<Option<SandboxRecord>, EngineError> {
        self.site.ledger.read(|tx| {
            let Some(record) = tx.sandbox(id)? else {
                return Ok(None);
            };
            let chain = record.layer.map(|top| tx.chain(top)).transpose()?;
            let has_it = record.next_layer == Some(layer)
                || chain.is_some_and(|chain| chain.iter().any(|one| one.id == layer));
            Ok((has_it && record.state == SandboxState::Running).then_some(record))
        })
    }
}
