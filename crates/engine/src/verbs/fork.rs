//! `fork`: new sandboxes from a checkpoint, each with its own top layer and its own identity, all
//! sharing what lies below. Restore is a fork with a count of one.

use std::sync::Arc;

use cowslip_ledger::{CheckpointRecord, LayerRecord, LedgerError, SandboxRecord};
use cowslip_model::api::{self, ForkRequest};
use cowslip_model::{LayerId, Name, Timestamp};

use crate::error::EngineError;
use crate::verbs::boot::{Image, Origin};
use crate::verbs::create::refuse_without_end;
use crate::{Engine, to_the_end};

/// Forks in one request at most.
const COUNT_MAX: u32 = 256;

impl Engine {
    /// Restores sandboxes from a checkpoint, all at once: all of them run in the end, or none is left.
    ///
    /// # Errors
    /// When the checkpoint cannot be restored here, or one of them did not come up.
    pub async fn fork(
        self: &Arc<Self>,
        reference: &str,
        request: ForkRequest,
    ) -> Result<Vec<api::Sandbox>, EngineError> {
        let checkpoint = self.find_checkpoint(reference)?;
        let count = request.count.unwrap_or(1);
        if count == 0 || count > COUNT_MAX {
            return Err(EngineError::Invalid(format!(
                "{count} forks: give 1 to {COUNT_MAX}"
            )));
        }
        refuse_without_end(
            request.ttl.or(checkpoint.spec.ttl),
            request.on_expiry.unwrap_or(checkpoint.spec.on_expiry),
        )?;
        let mut names = Vec::new();
        for index in 1..=count {
            names.push(fork_name(request.name.as_ref(), count, index)?);
        }
        let engine = Arc::clone(self);
        to_the_end(async move {
            let mut tasks = Vec::new();
            for name in names {
                let engine = Arc::clone(&engine);
                let (checkpoint, request) = (checkpoint.clone(), request.clone());
                tasks.push(tokio::spawn(async move {
                    engine.fork_one(&checkpoint, &request, name).await
                }));
            }
            let mut forks = Vec::new();
            let mut failed: Option<EngineError> = None;
            for task in tasks {
                match task.await {
                    Ok(Ok(record)) => forks.push(record),
                    Ok(Err(error)) => failed = failed.or(Some(error)),
                    Err(error) => {
                        failed = failed.or(Some(EngineError::Internal(format!("fork: {error}"))));
                    }
                }
            }
            if let Some(mut error) = failed {
                for record in forks {
                    let _busy = engine.lock(record.id).await;
                    error = error.and_rollback(engine.remove_locked(record.id).await);
                }
                return Err(error);
            }
            forks
                .iter()
                .map(|record| engine.view_sandbox(record))
                .collect()
        })
        .await
    }

    async fn fork_one(
        self: &Arc<Self>,
        checkpoint: &CheckpointRecord,
        request: &ForkRequest,
        name: Option<Name>,
    ) -> Result<SandboxRecord, EngineError> {
        self.refuse_changed(checkpoint)?;
        let below = self
            .site
            .ledger
            .read(|tx| tx.layer(checkpoint.layer))?
            .ok_or_else(|| LedgerError::Missing(format!("layer {}", checkpoint.layer)))?;
        let mut spec = checkpoint.spec.clone();
        spec.ttl = request.ttl.or(spec.ttl);
        spec.on_expiry = request.on_expiry.unwrap_or(spec.on_expiry);
        spec.isolation = self.allowed_isolation(request.isolation, spec.isolation)?;
        let top = LayerRecord {
            id: LayerId::random().map_err(LedgerError::from)?,
            template: spec.template,
            parent: self.parent_of_new_top(&below),
            format: self.volumes.format_over(below.format),
            size: spec.resources.disk,
            frozen: false,
            created_at: Timestamp::now(),
        };
        let mut record = self.record_new(name, spec, false, top.id)?;
        record.generation = checkpoint.generation + 1;
        record.forked_from = Some(checkpoint.id);
        record.main.clone_from(&checkpoint.main);
        let record = self.begin_creation(record, &top, |tx| {
            // It may have been removed since it was looked up; from here on its layer is held.
            match tx.checkpoint(checkpoint.id)? {
                Some(found) if found.ready => Ok(()),
                _ => Err(EngineError::NotFound {
                    kind: "checkpoint",
                    reference: checkpoint.name.to_string(),
                    near: Vec::new(),
                }),
            }
        })?;
        let _busy = self.lock(record.id).await;
        let outcome = async {
            self.make_volume(&record, &top, Some(&below)).await?;
            let origin = Origin::Image {
                image: Image::Checkpoint(checkpoint),
                saved_by: &checkpoint.monitor,
                new_identity: true,
                generation: record.generation,
            };
            let started = self.start_machine(&record, top.id, origin).await?;
            let base = self.base_of(record.id, &started).await;
            self.publish_running(record.id, "fork: publish", started, |sandbox| {
                sandbox.memory_base = base;
            })
        };
        match outcome.await {
            Ok(record) => {
                self.ttl_changed.notify_one();
                Ok(record)
            }
            Err(error) => Err(error.and_rollback(self.remove_locked(record.id).await)),
        }
    }

    /// What a new top layer over `layer` stands on: a whole copy stands on nothing.
    pub(crate) fn parent_of_new_top(&self, layer: &LayerRecord) -> Option<LayerId> {
        match self.volumes.freeze_style(layer.format) {
            cowslip_store::FreezeStyle::NewTop => Some(layer.id),
            cowslip_store::FreezeStyle::SetAside => None,
        }
    }
}

/// With several forks the name gets a number.
fn fork_name(name: Option<&Name>, count: u32, index: u32) -> Result<Option<Name>, EngineError> {
    match name {
        None => Ok(None),
        Some(name) if count == 1 => Ok(Some(name.clone())),
        Some(name) => format!("{name}-{index}")
            .parse()
            .map(Some)
            .map_err(|error: cowslip_model::NameError| EngineError::Invalid(error.to_string())),
    }
}
