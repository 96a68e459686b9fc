//! Layers that nothing stands on any more.

use cowslip_ledger::{Owner, SandboxRecord, Synchronous};

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::{Engine, blocking};

/// Layers in a chain at most: each is an open file of the monitor and a look-up for a read. Until
/// chains can be merged the limit is told before it hurts.
const CHAIN_MAX: usize = 128;

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

    /// Releases every layer that no sandbox, checkpoint or other layer stands on. Returns what was
    /// released, in words.
    pub(crate) async fn collect_layers(&self) -> Result<Vec<String>, EngineError> {
        let _one_at_a_time = self.collecting.lock().await;
        let mut released = Vec::new();
        let mut failed: Option<EngineError> = None;
        loop {
            let unused = self.site.ledger.read(|tx| tx.unused_layers())?;
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
