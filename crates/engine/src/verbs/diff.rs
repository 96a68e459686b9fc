//! `diff`: what each layer of a disk changed.

use std::sync::Arc;
use std::time::Duration;

use cowslip_ledger::{LayerRecord, SandboxRecord};
use cowslip_model::api::{self, LayerDiff};
use cowslip_model::{ByteSize, LayerId, SandboxState};
use cowslip_store::changes::{Changes, merge};

use crate::error::EngineError;
use crate::lookup::Source;
use crate::{Engine, to_the_end};

/// What a guest gets to write out what it has in memory; one that does not is looked at all the same.
const SYNC: Duration = Duration::from_secs(20);
/// Looks at a layer that is being written at most: it may be caught half-way.
const LOOKS: usize = 5;

impl Engine {
    /// How much each layer of a sandbox or a checkpoint changed. A running sandbox is synced first, so
    /// that its last layer tells what was written up to now.
    ///
    /// # Errors
    /// When a layer is damaged or gone.
    pub async fn diff(self: &Arc<Self>, reference: &str) -> Result<api::Diff, EngineError> {
        let source = self.find_source(reference)?;
        let engine = Arc::clone(self);
        to_the_end(async move {
            match source {
                Source::Checkpoint(record) => engine.diff_of(record.layer, false).await,
                Source::Sandbox(record) => {
                    let _busy = engine.lock(record.id).await;
                    let record = engine.current(record.id)?;
                    let live = record.state == SandboxState::Running;
                    if live {
                        engine.sync_if_it_can(&record).await;
                    }
                    engine.diff_of(engine.top_of(&record)?, live).await
                }
            }
        })
        .await
    }

    async fn sync_if_it_can(&self, record: &SandboxRecord) {
        let sync = async {
            let live = self.live(record)?;
            self.guest(record, &live).await?.sync().await?;
            Ok::<_, EngineError>(self.volumes.write_out(&self.site, record.id).await?)
        };
        match tokio::time::timeout(SYNC, sync).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(sandbox = %record.name, %error, "the guest did not sync");
            }
            Err(_) => tracing::warn!(sandbox = %record.name, "the guest did not sync in time"),
        }
    }

    async fn diff_of(&self, top: LayerId, live: bool) -> Result<api::Diff, EngineError> {
        let (layers, checkpoints) = self
            .site
            .ledger
            .read(|tx| Ok::<_, EngineError>((tx.chain(top)?, tx.checkpoints()?)))?;
        let mut all = Vec::with_capacity(layers.len());
        let mut told = Vec::with_capacity(layers.len());
        for layer in &layers {
            let changes = self.changes_of(layer, live && layer.id == top).await?;
            let here = checkpoints
                .iter()
                .filter(|one| one.ready && one.layer == layer.id);
            told.push(LayerDiff {
                id: layer.id,
                changed: ByteSize(changes.bytes()),
                occupied: ByteSize(self.volumes.usage(&self.site, layer)?),
                frozen: layer.frozen,
                checkpoints: here.map(|one| one.name.clone()).collect(),
            });
            all.push(changes);
        }
        let Some(last) = layers.last() else {
            return Err(EngineError::Internal(format!("layer {top} has no chain")));
        };
        let template = self.site.ledger.read(|tx| tx.template(last.template))?;
        let shown = merge(&all);
        Ok(api::Diff {
            template: last.template,
            template_name: template.and_then(|template| template.names.first().cloned()),
            size: last.size,
            backend: self.volumes.backend().as_str().to_owned(),
            changed: ByteSize(shown.iter().map(|piece| piece.change.length).sum()),
            live,
            layers: told,
        })
    }

    async fn changes_of(&self, layer: &LayerRecord, live: bool) -> Result<Changes, EngineError> {
        let mut looks = 1;
        loop {
            match self.volumes.changes(&self.site, layer).await {
                Err(error) if live && looks < LOOKS => {
                    tracing::debug!(layer = %layer.id, %error, "caught half-way; looked at again");
                    looks += 1;
                }
                other => return Ok(other?),
            }
        }
    }
}
