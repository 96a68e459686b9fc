//! `checkpoint`: memory, device state and disk of one instant, published together or not at all.
//!
//! ```text
//!   record ─ new layer ─ pause ─ freeze disk ─ save memory ─ resume │ sync ─ manifest ─ publish
//!                        └───────── the guest stands still ───────┘ │  (R25, R26, R30)
//! ```
//!
//! The guest stands still for a time that does not depend on what it wrote to its disk: the frozen
//! layer gets no more writes, so it is pressed onto the disk after the vCPUs run again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cowslip_host::DirectorySpec;
use cowslip_ledger::{
    CheckpointRecord, LayerRecord, LedgerError, Owner, SandboxRecord, Synchronous,
};
use cowslip_model::api::{self, CheckpointRequest};
use cowslip_model::{
    ByteSize, CheckpointId, DiskLayer, LayerId, SandboxId, SandboxState, Timestamp, Transition,
};
use cowslip_store::{FreezeStyle, LiveDisk, StoreError};
use cowslip_vmm::Machine;

use crate::error::EngineError;
use crate::guest::{FIRST_ANSWER, GuestError};
use crate::live::Live;
use crate::verbs::memory;
use crate::verbs::rebuild::{self, RECORD};
use crate::{Engine, blocking, names, to_the_end};

/// The file of a checkpoint's memory and device state.
pub(crate) const MEMORY: &str = "memory";

/// A running machine's disk, for the volume backend.
pub(crate) struct MachineDisk<'a> {
    pub(crate) sandbox: SandboxId,
    pub(crate) machine: &'a Arc<dyn Machine>,
}

#[async_trait]
impl LiveDisk for MachineDisk<'_> {
    fn sandbox(&self) -> SandboxId {
        self.sandbox
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), StoreError> {
        self.machine
            .change_disk(next)
            .await
            .map_err(|error| self.swap_error(&error))
    }

    async fn disk_top(&self) -> Result<PathBuf, StoreError> {
        self.machine
            .disk_top()
            .await
            .map_err(|error| self.swap_error(&error))
    }
}

impl MachineDisk<'_> {
    fn swap_error(&self, error: &cowslip_vmm::VmmError) -> StoreError {
        StoreError::Swap {
            sandbox: self.sandbox,
            message: crate::error::chain(error).join(": "),
        }
    }
}

/// What one checkpoint works with.
pub(crate) struct Plan {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) top: LayerRecord,
    pub(crate) other: LayerRecord,
}

impl Plan {
    /// The layer that is frozen in the end.
    pub(crate) fn frozen(&self, style: FreezeStyle) -> &LayerRecord {
        match style {
            FreezeStyle::NewTop => &self.top,
            FreezeStyle::SetAside => &self.other,
        }
    }
}

/// What was saved while the guest stood still.
struct Saved {
    memory_bytes: u64,
    /// Images that the memory stands on.
    memory_chain: u32,
    /// How long the disk took.
    disk: Duration,
    /// How long memory and device state took.
    memory: Duration,
}

impl Engine {
    /// Takes a checkpoint of a running sandbox, which goes on running.
    ///
    /// # Errors
    /// When it does not run, or a step failed: the sandbox runs on as before then (or is `failed`, if
    /// it could not be let go on), and no checkpoint is left.
    pub async fn create_checkpoint(
        self: &Arc<Self>,
        request: CheckpointRequest,
    ) -> Result<api::Checkpoint, EngineError> {
        let id = self.find_sandbox(&request.sandbox)?.id;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let _busy = engine.lock(id).await;
            let record = engine.checkpoint_locked(id, request).await?;
            engine.tidy_chain(id);
            engine.view_checkpoint(&record)
        })
        .await
    }

    async fn checkpoint_locked(
        self: &Arc<Self>,
        id: SandboxId,
        request: CheckpointRequest,
    ) -> Result<CheckpointRecord, EngineError> {
        self.begin(id, Transition::Checkpointing, "checkpoint")
            .await?;
        let outcome = async {
            // An earlier checkpoint may have left open which layer the guest writes.
            self.settle_swap(id).await?;
            if let Some(name) = &request.name {
                self.discard_left_over(name, id).await?;
            }
            let before = self.current(id)?;
            self.refuse_long_chain(&before)?;
            let live = self.live(&before)?;
            // Until the save is known to have come about nobody knows what the machine's memory stands on.
            let sandbox = SandboxRecord {
                memory_base: None,
                ..before.clone()
            };
            let checkpoint = CheckpointId::random().map_err(LedgerError::from)?;
            let plan = self.plan_checkpoint(&sandbox, checkpoint, request)?;
            match self.take(&before, &live, &plan).await {
                Ok(record) => Ok(record),
                Err(error) => Err(error.and_rollback(self.undo_checkpoint(id, &plan).await)),
            }
        };
        let result = outcome.await;
        if let Err(error) = &result {
            self.end_transition(id, error)?;
        }
        result
    }

    /// The sandbox runs on, unless the failure already settled it otherwise.
    pub(crate) fn end_transition(
        &self,
        id: SandboxId,
        error: &EngineError,
    ) -> Result<(), EngineError> {
        tracing::warn!(sandbox = %id, %error, "checkpoint failed");
        self.change(
            id,
            "checkpoint: give up",
            Synchronous::Normal,
            |sandbox, _| {
                if sandbox.transition == Some(Transition::Checkpointing) {
                    sandbox.transition = None;
                }
                Ok(None)
            },
        )
        .map(drop)
    }

    /// Records the checkpoint to be and the layer it needs, in one transaction.
    pub(crate) fn plan_checkpoint(
        &self,
        sandbox: &SandboxRecord,
        checkpoint: CheckpointId,
        request: CheckpointRequest,
    ) -> Result<Plan, EngineError> {
        let monitor = sandbox.monitor.clone().ok_or_else(|| {
            EngineError::Internal(format!(
                "sandbox \"{}\" runs without a monitor",
                sandbox.name
            ))
        })?;
        let name = match request.name {
            Some(name) => name,
            None => names::make_up(|name| {
                Ok(self
                    .site
                    .ledger
                    .read(|tx| tx.checkpoint_named(name))?
                    .is_some())
            })?,
        };
        let top_id = self.top_of(sandbox)?;
        let other_id = LayerId::random().map_err(LedgerError::from)?;
        self.site
            .ledger
            .write("checkpoint: record", Synchronous::Normal, |tx| {
                if tx.checkpoint_named(&name)?.is_some() {
                    return Err(EngineError::Exists {
                        kind: "checkpoint",
                        name: name.clone(),
                    });
                }
                let top = tx
                    .layer(top_id)?
                    .ok_or_else(|| LedgerError::Missing(format!("layer {top_id}")))?;
                let style = self.volumes.freeze_style(top.format);
                let other = LayerRecord {
                    id: other_id,
                    template: top.template,
                    parent: (style == FreezeStyle::NewTop).then_some(top_id),
                    format: self.volumes.format_over(top.format),
                    size: top.size,
                    frozen: false,
                    created_at: Timestamp::now(),
                };
                tx.put_layer(&other)?;
                let mut record = sandbox.clone();
                if style == FreezeStyle::NewTop {
                    record.next_layer = Some(other_id);
                }
                tx.put_sandbox(&record)?;
                tx.put_checkpoint(&CheckpointRecord {
                    id: checkpoint,
                    name: name.clone(),
                    sandbox: sandbox.id,
                    sandbox_name: sandbox.name.clone(),
                    spec: sandbox.spec.clone(),
                    main: sandbox.main.clone(),
                    layer: if style == FreezeStyle::NewTop {
                        top_id
                    } else {
                        other_id
                    },
                    generation: sandbox.generation,
                    monitor,
                    template_digest: tx
                        .template(sandbox.spec.template)?
                        .map(|found| found.digest),
                    kernel_digest: tx.kernel(sandbox.spec.kernel)?.map(|found| found.digest),
                    disk_only: false,
                    memory_bytes: ByteSize(0),
                    memory_chain: 0,
                    whole_since: None,
                    downtime_us: 0,
                    publication_us: 0,
                    ready: false,
                    created_at: Timestamp::now(),
                })?;
                Ok(Plan {
                    checkpoint,
                    top,
                    other,
                })
            })
    }

    async fn take(
        &self,
        sandbox: &SandboxRecord,
        live: &Live,
        plan: &Plan,
    ) -> Result<CheckpointRecord, EngineError> {
        let directory = self.site.layout.checkpoint(plan.checkpoint);
        let spec = DirectorySpec {
            path: directory.clone(),
            mode: 0o700,
        };
        self.make_directory(Owner::Checkpoint(plan.checkpoint), spec)
            .await?;
        let machine = &live.machine;
        self.prepare_freeze(sandbox.id, machine, plan).await?;
        let image = directory.join(MEMORY);
        let depth = self.stand_on_base(sandbox, machine, &image).await;
        let base = depth.and_then(|depth| memory::files(&image, depth).get(1).cloned());
        let begun = Instant::now();
        let stopped = async {
            machine.pause().await?;
            let paused = Instant::now();
            self.freeze(sandbox.id, machine, plan).await?;
            let disk = paused.elapsed();
            let written = machine.save(&image, base.as_deref()).await?;
            Ok::<_, EngineError>(Saved {
                memory_bytes: written.bytes,
                memory_chain: depth.filter(|_| written.changes_only).unwrap_or(0),
                disk,
                memory: paused.elapsed() - disk,
            })
        };
        let saved = stopped.await;
        let (saved, since) = match (saved, self.go_on(sandbox, live).await) {
            (Ok(saved), since) => (saved, since?),
            (Err(error), since) => return Err(error.and_resume(since.map(drop))),
        };
        let downtime = since.duration_since(begun);
        self.publish_checkpoint(sandbox.id, live, plan, &saved, begun, downtime)
            .await
    }

    /// Whatever happened while it stood still, the guest goes on (R30). Tells since when it does.
    pub(crate) async fn go_on(
        &self,
        sandbox: &SandboxRecord,
        live: &Live,
    ) -> Result<Instant, EngineError> {
        if let Err(error) = live.resume().await {
            let error = EngineError::from(error);
            let ended = self.end_machine(sandbox.id).await;
            let settled = self.settle(
                sandbox.id,
                "checkpoint: settle",
                SandboxState::Failed,
                Some(&error),
            );
            return Err(error.and_rollback(ended.and(settled)));
        }
        let since = Instant::now();
        self.catch_up(sandbox, live).await;
        Ok(since)
    }

    /// Sets the clock of a guest that stood still. A save may have broken the connection to it
    /// (Firecracker's does): then there is a new one before anybody else uses the broken one.
    pub(crate) async fn catch_up(&self, sandbox: &SandboxRecord, live: &Live) {
        let seconds = self.config.machine.restore_timeout;
        let within = Duration::from_secs(seconds);
        let outcome = async {
            if let Some(guest) = live.guest() {
                match guest.set_clock().await {
                    Err(_) if guest.is_closed() => {}
                    other => return Ok(other?),
                }
            }
            if !live.knows_guest() {
                return Ok(());
            }
            let mut patience = FIRST_ANSWER;
            loop {
                let guest = self.guest(sandbox, live).await?;
                match tokio::time::timeout(patience, guest.set_clock()).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(error)) if !guest.is_closed() || patience > within => {
                        return Err(error.into());
                    }
                    // No answer, or the connection broke.
                    _ => live.forget_guest(),
                }
                patience *= 2;
            }
        };
        let late = |_| GuestError::TimedOut {
            sandbox: sandbox.id,
            seconds,
        };
        let outcome = tokio::time::timeout(within, outcome).await.map_err(late);
        if let Err(error) = outcome.map_err(EngineError::from).flatten() {
            tracing::warn!(sandbox = %sandbox.name, %error, "the guest's clock lost the time it stood still");
        }
    }

    /// What of a freeze needs no standstill.
    pub(crate) async fn prepare_freeze(
        &self,
        sandbox: SandboxId,
        machine: &Arc<dyn Machine>,
        plan: &Plan,
    ) -> Result<(), EngineError> {
        if self.volumes.freeze_style(plan.top.format) == FreezeStyle::NewTop {
            self.volumes
                .make_layer(&self.site, &plan.other, Some(&plan.top))
                .await?;
        }
        let disk = MachineDisk { sandbox, machine };
        self.volumes
            .prepare_freeze(&self.site, &plan.top, &plan.other, &disk)
            .await?;
        Ok(())
    }

    /// Freezes the disk and records at once which layer the guest writes from now on.
    pub(crate) async fn freeze(
        &self,
        sandbox: SandboxId,
        machine: &Arc<dyn Machine>,
        plan: &Plan,
    ) -> Result<(), EngineError> {
        let disk = MachineDisk { sandbox, machine };
        self.volumes
            .freeze(&self.site, &plan.top, &plan.other, &disk)
            .await?;
        if self.volumes.freeze_style(plan.top.format) == FreezeStyle::NewTop {
            self.advance(sandbox, "checkpoint: changed over")?;
        }
        Ok(())
    }

    /// The next layer is the top from now on, and what was the top is frozen.
    pub(crate) fn advance(&self, id: SandboxId, step: &str) -> Result<SandboxRecord, EngineError> {
        self.change(id, step, Synchronous::Normal, |sandbox, tx| {
            if let Some(next) = sandbox.next_layer.take()
                && let Some(old) = sandbox.layer.replace(next)
                && let Some(mut old) = tx.layer(old)?
            {
                old.frozen = true;
                tx.put_layer(&old)?;
            }
            Ok(None)
        })
    }

    async fn publish_checkpoint(
        &self,
        sandbox: SandboxId,
        live: &Live,
        plan: &Plan,
        saved: &Saved,
        begun: Instant,
        downtime: Duration,
    ) -> Result<CheckpointRecord, EngineError> {
        let frozen = plan.frozen(self.volumes.freeze_style(plan.top.format));
        self.volumes.sync(&self.site, frozen).await?;
        let directory = self.site.layout.checkpoint(plan.checkpoint);
        let found = self.site.ledger.read(|tx| tx.checkpoint(plan.checkpoint))?;
        let mut record =
            found.ok_or_else(|| LedgerError::Missing(format!("checkpoint {}", plan.checkpoint)))?;
        record.memory_bytes = ByteSize(saved.memory_bytes);
        record.memory_chain = saved.memory_chain;
        record.downtime_us = micros(downtime);
        record.publication_us = micros(begun.elapsed());
        record.ready = true;
        let layers = self.site.ledger.read(|tx| tx.chain(frozen.id))?;
        let text = rebuild::encode(&rebuild::CheckpointFile {
            record: record.clone(),
            layers,
        })?;
        let host = Arc::clone(&self.site.host);
        let image = directory.join(MEMORY);
        let files = memory::files(&image, saved.memory_chain);
        blocking(move || {
            for file in &files {
                host.sync(file)?;
            }
            host.publish(&directory.join(RECORD), &text)
        })
        .await??;
        let base = self
            .keep_base(sandbox, &live.machine, &image, saved.memory_chain)
            .await;
        let frozen_id = frozen.id;
        let event = self
            .site
            .ledger
            .write("checkpoint: publish", Synchronous::Full, |tx| {
                record.publication_us = micros(begun.elapsed());
                tx.put_checkpoint(&record)?;
                if let Some(mut layer) = tx.layer(frozen_id)? {
                    layer.frozen = true;
                    tx.put_layer(&layer)?;
                }
                if let Some(mut sandbox) = tx.sandbox(sandbox)? {
                    sandbox.transition = None;
                    sandbox.memory_base = base;
                    tx.put_sandbox(&sandbox)?;
                }
                let detail = serde_json::json!({
                    "sandbox": record.sandbox,
                    "downtime_us": record.downtime_us,
                    "disk_us": micros(saved.disk),
                    "memory_us": micros(saved.memory),
                    "publication_us": record.publication_us,
                    "memory_bytes": record.memory_bytes,
                    "memory_chain": record.memory_chain,
                });
                tx.emit("checkpoint.created", record.id, Some(&record.name), detail)
                    .map_err(EngineError::from)
            })?;
        self.announce(event);
        Ok(record)
    }

    /// Releases an unpublished checkpoint. If the guest writes the new layer already it keeps it: its
    /// chain is one deeper then, and nothing else differs.
    pub(crate) async fn undo_checkpoint(
        &self,
        id: SandboxId,
        plan: &Plan,
    ) -> Result<(), EngineError> {
        let discarded = self.discard_checkpoint(plan.checkpoint).await;
        let settled = self.settle_swap(id).await;
        discarded.and(settled)?;
        self.volumes.settle(&self.site, id).await?;
        self.volumes.retire(&self.site).await?;
        self.collect_layers().await.map(drop)
    }

    /// Ends a swap of layers that may have happened or not: a machine itself knows which layer it
    /// writes, and without one the new layer, empty or written, is right. While a machine that could
    /// not be ended may still write, nothing is decided: recovery does.
    pub(crate) async fn settle_swap(&self, id: SandboxId) -> Result<(), EngineError> {
        let Some(record) = self.site.ledger.read(|tx| tx.sandbox(id))? else {
            return Ok(());
        };
        let Some(next) = record.next_layer else {
            return Ok(());
        };
        let Some(live) = self.live.get(id) else {
            if self
                .site
                .ledger
                .read(|tx| tx.handles_of(Owner::Machine(id)))?
                .is_empty()
            {
                return self.advance_if_whole(id).await;
            }
            return Err(EngineError::Internal(format!(
                "the machine of sandbox \"{}\" could not be ended, so its layers stay as they are",
                record.name
            )));
        };
        if self.writes_next(id, next, &live.machine).await? {
            self.advance(id, "settle the swap: advance").map(drop)
        } else {
            self.revert(id, "settle the swap: revert")
        }
    }

    /// Whether a machine has changed over to `next`.
    pub(crate) async fn writes_next(
        &self,
        sandbox: SandboxId,
        next: LayerId,
        machine: &Arc<dyn Machine>,
    ) -> Result<bool, EngineError> {
        let Some(layer) = self.site.ledger.read(|tx| tx.layer(next))? else {
            return Ok(false);
        };
        let disk = MachineDisk { sandbox, machine };
        Ok(self.volumes.is_written(&self.site, &layer, &disk).await?)
    }

    /// The next layer is given up; the caller collects it.
    pub(crate) fn revert(&self, id: SandboxId, step: &str) -> Result<(), EngineError> {
        self.change(id, step, Synchronous::Normal, |sandbox, _| {
            sandbox.next_layer = None;
            Ok(None)
        })
        .map(drop)
    }
}

pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
