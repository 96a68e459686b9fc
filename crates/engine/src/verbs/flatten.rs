//! `template from`: the disk of a sandbox or a checkpoint as a template of its own.
//!
//! ```text
//!   running      lock ─ new layer ─ sync guest ─ pause ─ freeze disk ─ resume ─ unlock ┐
//!   checkpoint   its layer is frozen already ──────────────────────────────────────────┤
//!   stopped      lock, until the end                                                   │
//!                                          flatten ─ seal ─ record.json ─ publish ◄────┘  (R24)
//! ```
//!
//! What is frozen for it is held by a checkpoint that is never published, so that whatever happens to
//! the sandbox meanwhile, its layers stay; what is left of it after a crash recovery discards like any
//! other.

use std::path::PathBuf;
use std::sync::Arc;

use cowslip_host::DirectorySpec;
use cowslip_image::Imported;
use cowslip_ledger::{
    CheckpointRecord, LayerRecord, LedgerError, Owner, SandboxRecord, Synchronous,
};
use cowslip_model::api::{self, CheckpointRequest, FlattenRequest, ImportMessage};
use cowslip_model::{
    CheckpointId, ImageConfig, LayerId, Name, SandboxId, SandboxState, TemplateId, Transition,
};

use crate::error::EngineError;
use crate::live::Live;
use crate::lookup::Source;
use crate::verbs::checkpoint::Plan;
use crate::verbs::create::check_env;
use crate::verbs::import::platform_of;
use crate::verbs::template::Provenance;
use crate::{Engine, blocking, names, to_the_end};

/// A checkpoint that is never published: it holds a frozen layer for as long as it is read.
#[derive(Clone, Copy)]
struct Pin {
    checkpoint: CheckpointId,
    layer: LayerId,
}

impl Engine {
    /// Makes a template of the disk of a sandbox or a checkpoint. A running sandbox is synced, stands
    /// still for a moment and runs on; of its memory nothing is kept.
    ///
    /// # Errors
    /// When the name is taken, the guest does not sync, a layer is damaged, or the file system is not
    /// whole; no template is left then, and a running sandbox runs on.
    pub async fn flatten(
        self: &Arc<Self>,
        request: FlattenRequest,
    ) -> Result<api::Template, EngineError> {
        self.refuse_taken(&request.name)?;
        if let Some(config) = &request.config {
            check_config(config)?;
        }
        self.refuse_without_space("flatten")?;
        let source = self.find_source(&request.source)?;
        let engine = Arc::clone(self);
        to_the_end(async move {
            match source {
                Source::Checkpoint(record) => {
                    let words = format!("checkpoint \"{}\"", record.name);
                    let id = CheckpointId::random().map_err(LedgerError::from)?;
                    let _making = engine.making(Owner::Checkpoint(id));
                    let pin = engine.pin(id, &record)?;
                    engine
                        .flatten_chain(pin.layer, Some(pin), &request, &words)
                        .await
                }
                Source::Sandbox(record) => {
                    let words = format!("sandbox \"{}\"", record.name);
                    engine.flatten_sandbox(record.id, &request, &words).await
                }
            }
        })
        .await
    }

    async fn flatten_sandbox(
        self: &Arc<Self>,
        id: SandboxId,
        request: &FlattenRequest,
        source: &str,
    ) -> Result<api::Template, EngineError> {
        let busy = self.lock(id).await;
        let record = self.current(id)?;
        if record.state == SandboxState::Running {
            let checkpoint = CheckpointId::random().map_err(LedgerError::from)?;
            let _making = self.making(Owner::Checkpoint(checkpoint));
            let pin = self.freeze_disk(id, checkpoint).await?;
            self.tidy_chain(id);
            // The frozen layers are held: whatever waits for the sandbox can go on.
            drop(busy);
            return self
                .flatten_chain(pin.layer, Some(pin), request, source)
                .await;
        }
        if record.state == SandboxState::Creating || self.has_machine(id)? {
            return Err(EngineError::State {
                verb: "flatten",
                name: record.name,
                state: record.state,
                reason: record.reason,
            });
        }
        self.settle_swap(id).await?;
        let top = self.top_of(&self.current(id)?)?;
        // Nobody starts it before the lock goes.
        let template = self.flatten_chain(top, None, request, source).await;
        drop(busy);
        template
    }

    /// Whether a machine is left that may write.
    fn has_machine(&self, id: SandboxId) -> Result<bool, EngineError> {
        let handles = self
            .site
            .ledger
            .read(|tx| tx.handles_of(Owner::Machine(id)))?;
        Ok(!handles.is_empty())
    }

    /// Holds the layer of a published checkpoint.
    fn pin(&self, id: CheckpointId, record: &CheckpointRecord) -> Result<Pin, EngineError> {
        let name = names::make_up(|name| {
            let taken = self.site.ledger.read(|tx| tx.checkpoint_named(name))?;
            Ok(taken.is_some())
        })?;
        self.site
            .ledger
            .write("flatten: hold", Synchronous::Normal, |tx| {
                let found = tx.checkpoint(record.id)?.filter(|found| found.ready);
                let found = found.ok_or_else(|| EngineError::NotFound {
                    kind: "checkpoint",
                    reference: record.name.to_string(),
                    near: Vec::new(),
                })?;
                let layer = found.layer;
                tx.put_checkpoint(&CheckpointRecord {
                    id,
                    name,
                    ready: false,
                    ..found
                })?;
                Ok(Pin {
                    checkpoint: id,
                    layer,
                })
            })
    }

    /// Lets go of what a pin holds; done already counts.
    async fn unpin(&self, pin: Option<Pin>) -> Result<(), EngineError> {
        let Some(pin) = pin else { return Ok(()) };
        self.discard_checkpoint(pin.checkpoint).await?;
        self.collect_layers().await.map(drop)
    }

    /// Freezes the disk of a running sandbox, which goes on; the caller has its lock.
    async fn freeze_disk(
        self: &Arc<Self>,
        id: SandboxId,
        checkpoint: CheckpointId,
    ) -> Result<Pin, EngineError> {
        self.begin(id, Transition::Checkpointing, "flatten").await?;
        let outcome = async {
            self.settle_swap(id).await?;
            let sandbox = self.current(id)?;
            self.refuse_long_chain(&sandbox)?;
            let live = self.live(&sandbox)?;
            let request = CheckpointRequest {
                sandbox: id.to_string(),
                name: None,
            };
            let plan = self.plan_checkpoint(&sandbox, checkpoint, request)?;
            match self.take_disk(&sandbox, &live, &plan).await {
                Ok(pin) => Ok(pin),
                Err(error) => Err(error.and_rollback(self.undo_checkpoint(id, &plan).await)),
            }
        };
        let result = outcome.await;
        if let Err(error) = &result {
            self.end_transition(id, error)?;
        }
        result
    }

    async fn take_disk(
        &self,
        sandbox: &SandboxRecord,
        live: &Live,
        plan: &Plan,
    ) -> Result<Pin, EngineError> {
        let machine = &live.machine;
        self.prepare_freeze(sandbox.id, machine, plan).await?;
        self.guest(sandbox, live).await?.sync().await?;
        let frozen = async {
            machine.pause().await?;
            self.freeze(sandbox.id, machine, plan).await
        };
        let frozen = frozen.await;
        self.go_on(sandbox, live).await?;
        frozen?;
        let style = self.volumes.freeze_style(plan.top.format);
        let layer = plan.frozen(style).id;
        let pin = Pin {
            checkpoint: plan.checkpoint,
            layer,
        };
        self.change(
            sandbox.id,
            "flatten: running again",
            Synchronous::Normal,
            |sandbox, tx| {
                sandbox.transition = None;
                if let Some(mut layer) = tx.layer(layer)? {
                    layer.frozen = true;
                    tx.put_layer(&layer)?;
                }
                Ok(None)
            },
        )?;
        Ok(pin)
    }

    /// Writes the chain below `top`, which nothing writes, out as a template.
    async fn flatten_chain(
        &self,
        top: LayerId,
        pin: Option<Pin>,
        request: &FlattenRequest,
        source: &str,
    ) -> Result<api::Template, EngineError> {
        let id = TemplateId::random().map_err(LedgerError::from)?;
        let _making = self.making(Owner::Template(id));
        let name = &request.name;
        let made = async {
            let layers = self.site.ledger.read(|tx| tx.chain(top))?;
            let imported = self.flatten_as(id, &layers, name).await?;
            // All is read. Before the publication, so that one that is told of leaves nothing behind.
            self.unpin(pin).await?;
            let below = layers.first().map(|base| base.template);
            let below = match below {
                Some(template) => self.site.ledger.read(|tx| tx.template(template))?,
                None => None,
            };
            let config = request.config.clone();
            let origin = Provenance {
                source: source.to_owned(),
                config: config.or_else(|| below.and_then(|template| template.config)),
                layers: None,
            };
            self.publish_template(id, name, origin, &imported).await
        };
        let error = match made.await {
            Ok(ImportMessage::Done { template, .. }) => return Ok(*template),
            Ok(other) => EngineError::Internal(format!("publish a template: {other:?} is no end")),
            Err(error) => error,
        };
        let unwound = self.unwind_template(id).await;
        let unpinned = self.unpin(pin).await;
        Err(error.and_rollback(unwound.and(unpinned)))
    }

    /// The image in a directory of the template to be.
    async fn flatten_as(
        &self,
        id: TemplateId,
        layers: &[LayerRecord],
        name: &Name,
    ) -> Result<Imported, EngineError> {
        let owner = Owner::Template(id);
        let path = self.site.layout.template(id);
        self.make_directory(owner, DirectorySpec { path, mode: 0o700 })
            .await?;
        let image: PathBuf = self.site.layout.template_image(id);
        let stats = self
            .volumes
            .flatten(&self.site, layers, owner, &image)
            .await?;
        tracing::info!(template = %id, layers = layers.len(), ?stats, "flattened");
        let images = Arc::clone(&self.images);
        let name = name.clone();
        let sealed = blocking(move || images.seal(&image, &name)).await??;
        Ok(Imported {
            digest: sealed.digest,
            size: sealed.size,
            used: sealed.used,
            entries: sealed.entries,
            skipped: Vec::new(),
        })
    }
}

/// Refuses what no sandbox could be run with.
fn check_config(config: &ImageConfig) -> Result<(), EngineError> {
    check_env(&config.env)?;
    if let Some(platform) = &config.platform {
        platform_of(platform)?;
    }
    let words = config.entrypoint.iter().chain(&config.cmd);
    let mut texts = words.chain(&config.user).chain(&config.stop_signal);
    let relative = |dir: &String| !dir.starts_with('/') || dir.contains('\0');
    if texts.any(|text| text.contains('\0')) || config.workdir.as_ref().is_some_and(relative) {
        return Err(EngineError::Invalid(
            "how the template is run has a NUL, or a working directory that is not absolute"
                .to_owned(),
        ));
    }
    Ok(())
}
