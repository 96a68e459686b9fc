//! Recovery: what the engine does before it takes requests, and what `doctor` only prints.

use std::collections::BTreeSet;
use std::sync::Arc;

use cowslip_ledger::plan::{Action, Books, Inventory, VolumeOutcome, plan};
use cowslip_ledger::{HandleRow, Owner, SandboxRecord, Synchronous};
use cowslip_model::{SandboxId, SandboxState};
use cowslip_vmm::RunState;

use crate::error::{EngineError, chain};
use crate::guest::GuestError;
use crate::live::Live;
use crate::unwind;
use crate::{Engine, blocking};

/// What recovery did, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// What was done.
    pub done: Vec<String>,
    /// What failed, or cannot be attributed and was left alone.
    pub left: Vec<String>,
}

impl Engine {
    /// What recovery would do now.
    ///
    /// # Errors
    /// When the ledger or the host cannot be read.
    pub async fn recovery_plan(&self) -> Result<Vec<Action>, EngineError> {
        // Before the records: what is published in between is in one of the two.
        let mut being_made = self.being_made();
        being_made.extend(self.spares.owners());
        let books = self.site.ledger.read(|tx| {
            Ok::<_, EngineError>(Books {
                sandboxes: tx.sandboxes()?,
                checkpoints: tx.checkpoints()?,
                layers: tx.layers()?,
                handles: tx.handles()?,
                others: tx
                    .templates()?
                    .iter()
                    .map(|template| Owner::Template(template.id))
                    .chain(tx.kernels()?.iter().map(|kernel| Owner::Kernel(kernel.id)))
                    .chain(being_made)
                    .collect::<BTreeSet<_>>(),
            })
        })?;
        let host = Arc::clone(&self.site.host);
        let rows = books.handles.clone();
        let inventory = blocking(move || {
            let mut inventory = Inventory::default();
            for row in &rows {
                inventory.presence.insert(row.id, host.probe(row)?);
            }
            inventory.strays = host.strays(&rows)?;
            Ok::<_, EngineError>(inventory)
        })
        .await??;
        Ok(plan(&books, &inventory, self.site.ledger.boot_id()))
    }

    /// Carries out the plan. Each action is tried, whatever became of the others (R18).
    ///
    /// # Errors
    /// When no plan can be made.
    pub async fn recover(self: &Arc<Self>) -> Result<Recovered, EngineError> {
        let mut recovered = Recovered::default();
        for action in self.recovery_plan().await? {
            let words = in_words(&action);
            if let Action::Report { what } = &action {
                recovered.left.push(what.clone());
                continue;
            }
            match self.carry_out(action).await {
                Ok(()) => {
                    tracing::info!(action = words, "recovered");
                    recovered.done.push(words);
                }
                Err(error) => {
                    let why = chain(&error).join(": ");
                    tracing::error!(action = words, why, "recovery failed");
                    recovered.left.push(format!("{words}: {why}"));
                }
            }
        }
        // What the actions freed: devices first, since layers go only without them.
        if let Err(error) = self.volumes.retire(&self.site).await {
            recovered.left.push(chain(&error).join(": "));
        }
        if let Err(error) = self.collect_layers().await {
            recovered.left.push(chain(&error).join(": "));
        }
        Ok(recovered)
    }

    async fn carry_out(self: &Arc<Self>, action: Action) -> Result<(), EngineError> {
        match action {
            Action::Adopt { sandbox }
            | Action::Settle { sandbox, .. }
            | Action::Remove { sandbox, .. } => {
                let _busy = self.lock(sandbox).await;
                self.carry_out_locked(action).await
            }
            Action::Discard { checkpoint } => self.discard_checkpoint(checkpoint).await,
            // Collected together, at the end.
            Action::Collect { .. } | Action::Report { .. } => Ok(()),
            Action::Release { handle, .. } => {
                let row = self.site.ledger.read(|tx| tx.handle(handle))?;
                match row {
                    Some(row) => self.release_row(row).await,
                    None => Ok(()),
                }
            }
            Action::ReleaseStray { row, .. } => {
                let host = Arc::clone(&self.site.host);
                Ok(blocking(move || host.release(&row)).await??)
            }
        }
    }

    /// An action on a sandbox; the caller holds its lock.
    async fn carry_out_locked(self: &Arc<Self>, action: Action) -> Result<(), EngineError> {
        match action {
            Action::Adopt { sandbox } => self.adopt(sandbox).await,
            Action::Settle {
                sandbox,
                state,
                volume,
                reason,
            } => self.settle_found(sandbox, state, volume, reason).await,
            Action::Remove { sandbox, .. } => self.remove_locked(sandbox).await,
            _ => Ok(()),
        }
    }

    /// Ends a transition that a verb of this engine left, because what it had to write down in the end could
    /// not be written. The caller holds the sandbox's lock.
    pub(crate) async fn finish_interrupted(
        self: &Arc<Self>,
        left: SandboxRecord,
    ) -> Result<(), EngineError> {
        let id = left.id;
        tracing::warn!(sandbox = %left.name, transition = ?left.transition, "a verb did not come to its end");
        // A machine that still runs goes on, unless its image is complete: that is the sandbox then.
        if let Some(live) = self.live.get(id)
            && left.state == SandboxState::Running
            && !left.paused_image
        {
            self.settle_swap(id).await?;
            self.volumes.settle(&self.site, id).await?;
            if !self.water.is_frozen(id) {
                self.go_on(&left, &live).await?;
            }
            return self.keep_running(id, "finish: goes on");
        }
        self.carry_out_all_of(id).await
    }

    /// Ends what verbs of this engine left of a sandbox. The caller holds its lock.
    pub(crate) async fn put_in_order(self: &Arc<Self>, id: SandboxId) -> Result<(), EngineError> {
        match self.site.ledger.read(|tx| tx.sandbox(id))? {
            Some(left) if left.transition.is_some() => self.finish_interrupted(left).await,
            // Its watch sees to a machine that has just ended.
            Some(_) if self.live.get(id).is_some() => Ok(()),
            Some(_) => self.carry_out_all_of(id).await,
            None => Ok(()),
        }
    }

    /// What the plan has for one sandbox; the caller holds its lock.
    async fn carry_out_all_of(self: &Arc<Self>, id: SandboxId) -> Result<(), EngineError> {
        let about = |action: &Action| match action {
            Action::Adopt { sandbox }
            | Action::Settle { sandbox, .. }
            | Action::Remove { sandbox, .. } => *sandbox == id,
            _ => false,
        };
        for action in self.recovery_plan().await?.into_iter().filter(about) {
            self.carry_out_locked(action).await?;
        }
        Ok(())
    }

    /// Releases one handle that has no owner.
    pub(crate) async fn release_row(&self, row: HandleRow) -> Result<(), EngineError> {
        let site = self.site.clone();
        blocking(move || unwind::release(&site, &row))
            .await?
            .map_err(EngineError::Internal)
    }

    /// Connects to a machine that an earlier engine started (R46); one that does not answer has
    /// failed. The caller holds the lock.
    async fn adopt(self: &Arc<Self>, id: SandboxId) -> Result<(), EngineError> {
        let Some(record) = self.site.ledger.read(|tx| tx.sandbox(id))? else {
            return Ok(());
        };
        if let Err(error) = self.adopt_machine(&record).await {
            let ended = self.end_machine(id).await;
            // Without its machine the new layer is right, be it empty or written.
            let advanced = match ended {
                Ok(()) => self.advance_if_whole(id).await,
                Err(error) => Err(error),
            };
            let settled = self.settle(id, "adopt: settle", SandboxState::Failed, Some(&error));
            return Err(error.and_rollback(advanced.and(settled)));
        }
        Ok(())
    }

    async fn adopt_machine(self: &Arc<Self>, record: &SandboxRecord) -> Result<(), EngineError> {
        let id = record.id;
        let vmm = self.monitor_of(record).await?;
        // Which of two layers it writes is for the machine to say; that it has a disk is for us.
        let top = self.top_of(record)?;
        let layers = self.site.ledger.read(|tx| tx.chain(top))?;
        let disk = self.volumes.activate(&self.site, id, &layers).await?;
        let machine = vmm
            .attach(&self.site, &self.machine_config(record, Some(disk)))
            .await?;
        if let Some(next) = record.next_layer {
            if self.writes_next(id, next, &machine).await? {
                self.advance(id, "adopt: advance")?;
            } else {
                self.revert(id, "adopt: revert")?;
            }
        }
        // What is held too much goes with the machine at the latest.
        if let Err(error) = self.volumes.settle(&self.site, id).await {
            tracing::warn!(sandbox = %record.name, %error, "devices below its disk are not known to be unused");
        }
        if machine.state().await? == RunState::Paused {
            if self.water.low().is_some() {
                self.water.freeze(id);
            } else {
                machine.resume().await?;
            }
        }
        let live = Live::new(machine, None);
        // A guest that does not answer now may be busy: the machine runs, and what needs the guest
        // connects again. Only a machine that has ended is no sandbox any more.
        match self.guest(record, &live).await {
            Ok(guest) => {
                if let Err(error) = guest.set_clock().await {
                    tracing::warn!(sandbox = %record.name, %error, "the guest's clock was not set");
                }
            }
            Err(error @ EngineError::Guest(GuestError::Ended { .. })) => return Err(error),
            Err(error) => {
                tracing::warn!(sandbox = %record.name, %error, "the guest does not answer yet");
            }
        }
        // A machine is not ended over this: the rules that it was under hold, and `gc` tries again.
        if let Err(error) = self.adopt_network(record).await {
            let why = chain(&error).join(": ");
            tracing::warn!(sandbox = %record.name, why, "take its network over");
        }
        self.keep_running(id, "adopt: publish")?;
        self.live.insert(id, Arc::clone(&live));
        self.watch(id, Arc::clone(&live));
        self.follow_main_again(record, &live);
        Ok(())
    }

    /// Ends what is left of a machine and puts the sandbox where it belongs. The caller holds the lock.
    async fn settle_found(
        &self,
        id: SandboxId,
        state: SandboxState,
        volume: VolumeOutcome,
        reason: Option<String>,
    ) -> Result<(), EngineError> {
        self.end_machine(id).await?;
        match volume {
            VolumeOutcome::Keep => {}
            VolumeOutcome::Revert => self.revert(id, "recover: revert")?,
            VolumeOutcome::Advance => self.advance_if_whole(id).await?,
        }
        let record = self.change(id, "recover: settle", Synchronous::Normal, |sandbox, tx| {
            sandbox.state = state;
            sandbox.transition = None;
            sandbox.reason.clone_from(&reason);
            // Only of a paused sandbox is the image the sandbox.
            sandbox.paused_image &= state == SandboxState::Paused;
            let detail = serde_json::json!({ "state": state, "reason": reason });
            tx.emit("sandbox.recovered", id, Some(&sandbox.name), detail)
                .map(Some)
        })?;
        if !record.paused_image {
            self.discard_image(id)?;
        }
        Ok(())
    }

    /// The new layer becomes the top if its file was made; else no machine ever wrote it.
    pub(crate) async fn advance_if_whole(&self, id: SandboxId) -> Result<(), EngineError> {
        let Some(record) = self.site.ledger.read(|tx| tx.sandbox(id))? else {
            return Ok(());
        };
        let Some(next) = record.next_layer else {
            return Ok(());
        };
        let layers = self.site.ledger.read(|tx| tx.chain(next))?;
        match self.volumes.check(&self.site, id, &layers).await {
            Ok(()) => self.advance(id, "recover: advance").map(drop),
            Err(error) => {
                tracing::warn!(sandbox = %record.name, %error, "the new layer was not finished; it goes");
                self.revert(id, "recover: revert")
            }
        }
    }
}

/// An action in words, for logs, `doctor` and `gc`.
#[must_use]
pub fn in_words(action: &Action) -> String {
    match action {
        Action::Adopt { sandbox } => format!("adopt the machine of sandbox {sandbox}"),
        Action::Settle {
            sandbox,
            state,
            reason,
            ..
        } => {
            let why = reason
                .as_deref()
                .map(|reason| format!(" ({reason})"))
                .unwrap_or_default();
            format!("settle sandbox {sandbox} as {state}{why}")
        }
        Action::Remove { sandbox, reason } => format!("remove sandbox {sandbox}: {reason}"),
        Action::Discard { checkpoint } => format!("discard unpublished checkpoint {checkpoint}"),
        Action::Collect { layer } => format!("collect unused layer {layer}"),
        Action::Release { what, .. } => format!("release {what}"),
        Action::ReleaseStray { what, .. } => format!("end stray: {what}"),
        Action::Report { what } => what.clone(),
    }
}
