//! `fork`: new sandboxes from a checkpoint, each with its own top layer and its own identity, all
//! sharing what lies below. They are published together: all of them run, or none is left. Restore is
//! a fork with a count of one.

use std::sync::Arc;

use cowslip_ledger::{CheckpointRecord, LayerRecord, LedgerError, SandboxRecord};
use cowslip_model::api::{self, ForkRequest};
use cowslip_model::{LayerId, Name, SandboxId, Timestamp};
use tokio::sync::OwnedMutexGuard;

use crate::error::EngineError;
use crate::verbs::boot::{Image, Origin, Started};
use crate::verbs::create::refuse_without_end;
use crate::{Engine, to_the_end};

/// Forks in one request at most.
const COUNT_MAX: u32 = 256;

/// A fork whose guest has answered, and which is no sandbox yet.
struct Fork {
    id: SandboxId,
    /// Nobody else works on it.
    busy: OwnedMutexGuard<()>,
    started: Started,
    /// What its memory stands on.
    base: Option<u32>,
}

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
            let tasks: Vec<_> = names
                .into_iter()
                .map(|name| {
                    let engine = Arc::clone(&engine);
                    let (checkpoint, request) = (checkpoint.clone(), request.clone());
                    tokio::spawn(async move { engine.fork_one(&checkpoint, &request, name).await })
                })
                .collect();
            let mut forks = Vec::new();
            let mut failed: Option<EngineError> = None;
            for task in tasks {
                match task.await {
                    Ok(Ok(fork)) => forks.push(fork),
                    Ok(Err(error)) => failed = failed.or(Some(error)),
                    Err(error) => {
                        failed = failed.or(Some(EngineError::Internal(format!("fork: {error}"))));
                    }
                }
            }
            let published = engine.publish_forks(forks, failed).await?;
            published
                .iter()
                .map(|record| engine.view_sandbox(record))
                .collect()
        })
        .await
    }

    /// Publishes all forks together, or removes them where one failed: until then none of them is a sandbox.
    async fn publish_forks(
        self: &Arc<Self>,
        forks: Vec<Fork>,
        failed: Option<EngineError>,
    ) -> Result<Vec<SandboxRecord>, EngineError> {
        let mut held = Vec::new();
        let mut machines = Vec::new();
        for fork in forks {
            held.push((fork.id, fork.busy));
            let base = fork.base;
            machines.push((fork.id, fork.started, move |sandbox: &mut SandboxRecord| {
                sandbox.memory_base = base;
            }));
        }
        let published = match failed {
            Some(error) => {
                drop(machines);
                Err(error)
            }
            None => self.publish_all_running("fork: publish", machines),
        };
        match published {
            Ok(published) => Ok(published),
            Err(mut error) => {
                for (id, _busy) in held {
                    error = error.and_rollback(self.remove_locked(id).await);
                }
                Err(error)
            }
        }
    }

    async fn fork_one(
        self: &Arc<Self>,
        checkpoint: &CheckpointRecord,
        request: &ForkRequest,
        name: Option<Name>,
    ) -> Result<Fork, EngineError> {
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
        // The ports lead to the checkpoint's sandbox.
        spec.network.publish.clear();
        if let Some(rules) = request.network.clone() {
            spec.network = rules.over(&spec.network);
        }
        self.check_network(&spec.network, spec.vmm)?;
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
        self.remove_left_over(&record.name).await?;
        let busy = self.lock(record.id).await;
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
        let outcome = async {
            self.make_volume(&record, &top, Some(&below)).await?;
            let origin = match checkpoint.disk_only {
                true => Origin::Kernel,
                false => Origin::Image {
                    image: Image::Checkpoint(checkpoint),
                    saved_by: &checkpoint.monitor,
                    new_identity: true,
                    generation: record.generation,
                },
            };
            let started = self.start_machine(&record, top.id, origin).await?;
            let base = self.base_of(record.id, &started).await;
            Ok((started, base))
        };
        match outcome.await {
            Ok((started, base)) => Ok(Fork {
                id: record.id,
                busy,
                started,
                base,
            }),
            Err(error) => {
                let error: EngineError = error;
                Err(error.and_rollback(self.remove_locked(record.id).await))
            }
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
