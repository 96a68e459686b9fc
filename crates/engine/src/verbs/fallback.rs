//! A disk whose devices cannot be made becomes a whole copy, where the configuration says so
//! (`storage.on_dm_failure = "copy"`). Never silently: there is a warning, an event, and a field of the
//! sandbox; and it stays a copy, as do the forks of its checkpoints.

use cowslip_ledger::{LayerRecord, LedgerError, Owner, Synchronous};
use cowslip_model::{DiskChain, DiskFormat, LayerId, SandboxId, Timestamp};
use cowslip_store::{Backend, StoreError};

use crate::Engine;
use crate::config::OnDmFailure;
use crate::error::{EngineError, chain};

impl Engine {
    /// Whether the disk of `layers`, which could not be made a device, may become a copy.
    pub(crate) fn may_copy(&self, error: &StoreError, layers: &[LayerRecord]) -> bool {
        self.config.storage.on_dm_failure == OnDmFailure::Copy
            && self.volumes.backend() == Backend::Dm
            && layers
                .last()
                .is_some_and(|top| top.format == DiskFormat::Snapshot)
            && error.is_of_host()
    }

    /// Writes what `layers` make of their template to a layer of its own, which takes the place of the
    /// last of them, and gives the disk that it is.
    pub(crate) async fn copy_disk(
        &self,
        id: SandboxId,
        layers: &[LayerRecord],
        cause: &StoreError,
    ) -> Result<DiskChain, EngineError> {
        let cause = chain(cause).join(": ");
        tracing::warn!(sandbox = %id, cause, "its disk becomes a whole copy");
        // What was made of the devices before one could not be.
        self.volumes.retire(&self.site).await?;
        let Some(old) = layers.last() else {
            return Err(EngineError::Internal(format!(
                "sandbox {id} has no layer to copy"
            )));
        };
        let new = LayerRecord {
            id: LayerId::random().map_err(LedgerError::from)?,
            parent: None,
            format: DiskFormat::Raw,
            frozen: false,
            created_at: Timestamp::now(),
            ..old.clone()
        };
        let owner = Owner::Layer(new.id);
        let making = self.making(owner);
        self.site
            .ledger
            .write("copy: record", Synchronous::Normal, |tx| tx.put_layer(&new))?;
        let path = self.site.layout.layer(new.id, new.format);
        self.volumes
            .flatten(&self.site, layers, owner, &path)
            .await?;
        self.volumes.sync(&self.site, &new).await?;
        // Full: the old layer goes next, and that must not be what is left after a power cut.
        self.change(id, "copy: change over", Synchronous::Full, |sandbox, tx| {
            for layer in [&mut sandbox.layer, &mut sandbox.next_layer] {
                if *layer == Some(old.id) {
                    *layer = Some(new.id);
                }
            }
            sandbox.disk_fallback = Some(cause.clone());
            let detail = serde_json::json!({ "reason": cause });
            tx.emit("sandbox.disk_fallback", id, Some(&sandbox.name), detail)
                .map(Some)
        })?;
        drop(making);
        self.collect_layers().await?;
        Ok(self.volumes.activate(&self.site, id, &[new]).await?)
    }
}
