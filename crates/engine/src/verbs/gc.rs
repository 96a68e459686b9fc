//! `gc`: ends what verbs could not end, releases what nothing needs, and tells what is left that cannot be
//! attributed.

use std::sync::Arc;

use cowslip_ledger::plan::Action;
use cowslip_ledger::{HandleRow, Owner};
use cowslip_model::api::GcReport;
use cowslip_model::{ByteSize, SandboxId};

use crate::Engine;
use crate::error::{EngineError, chain};
use crate::to_the_end;
use crate::verbs::layers::is_used;
use crate::verbs::recover::in_words;

impl Engine {
    /// Settles what verbs left half-way, and releases layers and handles that nothing needs. What a verb is working on is left to it.
    ///
    /// # Errors
    /// When the ledger or the host cannot be read.
    pub async fn gc(self: &Arc<Self>, images: bool) -> Result<GcReport, EngineError> {
        let engine = Arc::clone(self);
        to_the_end(async move {
            let mut report = GcReport {
                released: Vec::new(),
                left: Vec::new(),
            };
            for action in engine.differences().await? {
                let words = in_words(&action);
                let outcome = match action {
                    Action::Release { handle, .. } => {
                        match engine.site.ledger.read(|tx| tx.handle(handle))? {
                            Some(row) => engine.release_row(row).await,
                            None => continue,
                        }
                    }
                    Action::ReleaseStray { row, .. } => {
                        let host = Arc::clone(&engine.site.host);
                        crate::blocking(move || host.release(&row))
                            .await?
                            .map_err(Into::into)
                    }
                    Action::Settle { sandbox, .. } | Action::Remove { sandbox, .. } => {
                        let _busy = engine.lock(sandbox).await;
                        engine.put_in_order(sandbox).await
                    }
                    Action::Discard { checkpoint } => engine.discard_unpublished(checkpoint).await,
                    Action::Collect { .. } => continue,
                    _ => {
                        report.left.push(words);
                        continue;
                    }
                };
                match outcome {
                    Ok(()) => report.released.push(words),
                    Err(error) => report
                        .left
                        .push(format!("{words}: {}", chain(&error).join(": "))),
                }
            }
            for (id, outcome) in engine.finish_networks().await? {
                let words = format!("put sandbox {id} under its rules");
                match outcome {
                    Ok(()) => report.released.push(words),
                    Err(error) => report
                        .left
                        .push(format!("{words}: {}", chain(&error).join(": "))),
                }
            }
            engine.renew_host_rules().await;
            match engine.collect_layers().await {
                Ok(layers) => report.released.extend(layers),
                Err(error) => report.left.push(chain(&error).join(": ")),
            }
            match engine.collect_blobs(images).await {
                Ok(blobs) if blobs.files == 0 => {}
                Ok(blobs) => report.released.push(format!(
                    "{} files of images, {}",
                    blobs.files,
                    ByteSize(blobs.bytes)
                )),
                Err(error) => report.left.push(chain(&error).join(": ")),
            }
            Ok(report)
        })
        .await
    }

    /// The recovery plan without what this engine is doing right now.
    pub(crate) async fn differences(&self) -> Result<Vec<Action>, EngineError> {
        // Held until the end: a layer that is being collected is gone from the books before its files are,
        // and is no difference.
        let collecting = self.collecting.try_lock();
        let plan = self.recovery_plan().await?;
        let (checkpoints, rows) = self
            .site
            .ledger
            .read(|tx| Ok::<_, EngineError>((tx.checkpoints()?, tx.handles()?)))?;
        let being_made = self.being_made();
        let has_row = |stray: &HandleRow| {
            let is_it = |row: &HandleRow| row.kind == stray.kind && row.spec == stray.spec;
            rows.iter().any(is_it)
        };
        Ok(plan
            .into_iter()
            .filter(|action| match action {
                Action::Adopt { sandbox } => {
                    self.live.get(*sandbox).is_none() && !self.is_busy(*sandbox)
                }
                Action::Settle { sandbox, .. } | Action::Remove { sandbox, .. } => {
                    !self.is_busy(*sandbox)
                }
                Action::Discard { checkpoint } => {
                    !being_made.contains(&Owner::Checkpoint(*checkpoint))
                        && !checkpoints
                            .iter()
                            .any(|one| one.id == *checkpoint && self.is_busy(one.sandbox))
                }
                Action::Collect { layer } => {
                    let owner = Owner::Layer(*layer);
                    collecting.is_ok() && !being_made.contains(&owner) && !is_used(owner, &rows)
                }
                // Every object has its row before it is there: one that has none now is nobody's.
                Action::ReleaseStray { row, .. } => !has_row(row),
                _ => true,
            })
            .collect())
    }

    /// Whether a verb works on this sandbox now.
    pub(crate) fn is_busy(&self, id: SandboxId) -> bool {
        self.locks.is_locked(id)
    }

    /// Marks that handles of `owner`, which has no published record, are being made or released; until the guard
    /// goes.
    pub(crate) fn making(&self, owner: Owner) -> Making<'_> {
        self.making_table().insert(owner);
        Making {
            engine: self,
            owner,
        }
    }

    pub(crate) fn being_made(&self) -> Vec<Owner> {
        self.making_table().iter().copied().collect()
    }

    fn making_table(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeSet<Owner>> {
        self.making
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// See [`Engine::making`].
pub(crate) struct Making<'a> {
    engine: &'a Engine,
    owner: Owner,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.engine.making_table().remove(&self.owner);
    }
}
