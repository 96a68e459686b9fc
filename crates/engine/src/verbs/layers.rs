//! Layers that nothing stands on any more.

use cowslip_host::Device;
use cowslip_ledger::{HandleRow, LayerRecord, Owner, Resource, SandboxRecord, Synchronous};

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::{Engine, blocking};

/// Layers in a chain at most: each is a look-up for a read, and an open file of the monitor or a device.
/// Where layers are not merged before (`merge.rs`) the limit is told before it hurts.
const CHAIN_MAX: usize = 128;

/// Whether something else stands on what this owner has.
pub(crate) fn is_used(owner: Owner, rows: &[HandleRow]) -> bool {
    let own = rows.iter().filter(|row| row.owner == owner);
    let own: Vec<_> = own.map(|row| row.id).collect();
    rows.iter()
        .filter(|row| row.owner != owner)
        .any(|row| row.depends_on.iter().any(|id| own.contains(id)))
}

impl Engine {
    /// Refuses to make a chain longer than it can be used. Asked before a checkpoint or a pause, never
    /// before a resume: what is paused can always come back.
    pub(crate) fn refuse_long_chain(&self, record: &SandboxRecord) -> Result<(), EngineError> {
        let top = self.top_of(record)?;
        let layers = self.site.ledger.read(|tx| tx.chain(top))?.len();
        if layers >= CHAIN_MAX {
            return Err(EngineError::Unsupported(format!(
                "the disk of sandbox \"{}\" has {layers} layers, which is the most that can be: every \
                 checkpoint and every resume adds one",
                record.name
            )));
        }
        Ok(())
    }

    /// Layers that nothing stands on, that no verb is making, and whose devices no machine uses: one
    /// that runs may stand on layers that were merged.
    fn collectable(&self) -> Result<Vec<LayerRecord>, EngineError> {
        let being_made = self.being_made();
        let (mut unused, rows) = self.site.ledger.read(|tx| {
            let unused = tx.unused_layers()?;
            // Only devices stand on something of a layer.
            let rows = if unused.is_empty() {
                Vec::new()
            } else {
                tx.handles_of_kind(Device::KIND)?
            };
            Ok::<_, EngineError>((unused, rows))
        })?;
        unused.retain(|layer| {
            let owner = Owner::Layer(layer.id);
            !being_made.contains(&owner) && !is_used(owner, &rows)
        });
        Ok(unused)
    }

    /// Releases every layer that no sandbox, checkpoint or other layer stands on. Returns what was
    /// released, in words.
    pub(crate) async fn collect_layers(&self) -> Result<Vec<String>, EngineError> {
        let collecting = self.collecting.lock().await;
        self.collect(&collecting).await
    }

    /// The same for who holds the lock already.
    pub(crate) async fn collect(
        &self,
        _one_at_a_time: &tokio::sync::MutexGuard<'_, ()>,
    ) -> Result<Vec<String>, EngineError> {
        let mut released = Vec::new();
        let mut failed: Option<EngineError> = None;
        loop {
            let unused = self.collectable()?;
            let mut progress = false;
            for layer in unused {
                let site = self.site.clone();
                let owner = Owner::Layer(layer.id);
                // Nobody can begin to use it: a new user comes only through an existing one.
                let outcome = match blocking(move || unwind(&site, owner)).await? {
                    Ok(()) => self
                        .site
                        .ledger
                        .write("collect: delete layer", Synchronous::Normal, |tx| {
                            tx.delete_layer(layer.id)
                        })
                        .map_err(EngineError::from),
                    Err(error) => Err(error.into()),
                };
                match outcome {
                    Ok(()) => {
                        progress = true;
                        released.push(format!("layer {}", layer.id));
                    }
                    Err(error) => failed = Some(error),
                }
            }
            // A layer that went may have been the last to stand on another.
            if !progress || failed.is_some() {
                break;
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(released),
        }
    }
}
