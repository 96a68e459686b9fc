//! Keeping chains short.
//!
//! ```text
//!   A ◄─ B ◄─ C ◄─ T (written)          A ◄─ B ◄─ C    while a checkpoint stands on one of them
//!                                        M ◄─ T         M = A, B and C together
//! ```
//!
//! Every freeze makes a chain one layer longer, and every layer is a look-up for a read. So when a chain
//! has become longer than `storage.chain_limit`, what is frozen below its top is written as one layer,
//! in the background, and the top is put on that in one transaction. Only a top that nothing else stands
//! on changes its parent: what a checkpoint was published with stays as it is. A machine that runs
//! changes over with its next freeze (`store/dm/freeze.rs`).

use std::sync::Arc;

use cowslip_ledger::{LayerRecord, LedgerError, Owner, Synchronous};
use cowslip_model::{LayerId, SandboxId, Timestamp};

use crate::Engine;
use crate::error::{EngineError, chain};

/// Merges beside a sandbox that may be frozen again meanwhile, which makes them worthless. The next one
/// lets it wait.
const BESIDE: u32 = 2;

/// One merge.
struct Work {
    /// A whole chain of frozen layers, base first.
    layers: Vec<LayerRecord>,
    /// What stands on them.
    top: LayerId,
    into: LayerRecord,
}

impl Engine {
    /// After a freeze or a resume: takes down what nothing needs any more, and merges the layers of the
    /// sandbox's disk where they have become too many. In the background, since nobody waits for it.
    pub(crate) fn tidy_chain(self: &Arc<Self>, id: SandboxId) {
        if !self.volumes.merges() {
            return;
        }
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = engine.shorten(id).await {
                let error = chain(&error).join(": ");
                tracing::warn!(sandbox = %id, error, "the layers of its disk were not merged");
            }
        });
    }

    async fn shorten(&self, id: SandboxId) -> Result<(), EngineError> {
        // One after the other: merges move many bytes.
        let _one_at_a_time = self.merging.lock().await;
        {
            let _busy = self.lock(id).await;
            self.volumes.settle(&self.site, id).await?;
        }
        self.volumes.retire(&self.site).await?;
        self.collect_layers().await?;
        for attempt in 0..=BESIDE {
            let busy = if attempt == BESIDE {
                Some(self.lock(id).await)
            } else {
                None
            };
            let Some(work) = self.plan_merge(id)? else {
                return Ok(());
            };
            let done = self.merge_and_stand(id, &work, busy.is_some()).await;
            // Of no use where it failed; and what was merged may be of no use to anybody any more.
            self.collect_layers().await?;
            if done? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What is to be merged; nothing where the chain is short enough, or there is no space.
    fn plan_merge(&self, id: SandboxId) -> Result<Option<Work>, EngineError> {
        let limit = usize::try_from(self.config.storage.chain_limit).unwrap_or(usize::MAX);
        if limit == 0 || self.refuse_without_space("merge").is_err() {
            return Ok(None);
        }
        let mut layers = self.site.ledger.read(|tx| {
            let top = tx.sandbox(id)?.and_then(|sandbox| sandbox.layer);
            top.map_or(Ok(Vec::new()), |top| tx.chain(top))
        })?;
        if layers.len() <= limit {
            return Ok(None);
        }
        let (Some(top), Some(last)) = (layers.pop(), layers.last()) else {
            return Ok(None);
        };
        let into = LayerRecord {
            id: LayerId::random().map_err(LedgerError::from)?,
            template: last.template,
            parent: None,
            format: last.format,
            size: last.size,
            frozen: true,
            created_at: Timestamp::now(),
        };
        let top = top.id;
        Ok(Some(Work { layers, top, into }))
    }

    /// Merges, and puts the top on the result; false where that was frozen meanwhile.
    async fn merge_and_stand(
        &self,
        id: SandboxId,
        work: &Work,
        locked: bool,
    ) -> Result<bool, EngineError> {
        // Nobody stands on it yet, and nobody but this engine knows that somebody will.
        let _making = self.making(Owner::Layer(work.into.id));
        self.site
            .ledger
            .write("merge: record", Synchronous::Normal, |tx| {
                tx.put_layer(&work.into)
            })?;
        self.volumes
            .merge(&self.site, &work.layers, &work.into)
            .await?;
        self.volumes.sync(&self.site, &work.into).await?;
        let _busy = if locked {
            None
        } else {
            Some(self.lock(id).await)
        };
        if self.site.ledger.read(|tx| tx.sandbox(id))?.is_none() {
            return Ok(true);
        }
        let mut stands = false;
        // Full: what it stood on may be removed, and that must not be what is left after a power cut.
        self.change(id, "merge: stand", Synchronous::Full, |sandbox, tx| {
            let below = work.layers.last().map(|layer| layer.id);
            let top = tx.layer(work.top)?;
            if let Some(mut top) = top
                && sandbox.layer == Some(top.id)
                && !top.frozen
                && top.parent == below
            {
                top.parent = Some(work.into.id);
                tx.put_layer(&top)?;
                stands = true;
            }
            Ok(None)
        })?;
        tracing::info!(sandbox = %id, layers = work.layers.len(), stands, "merged the layers of its disk");
        Ok(stands)
    }
}
