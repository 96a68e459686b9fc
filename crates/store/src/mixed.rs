//! Backend `dm` as an engine uses it: layers of device-mapper, and whole copies for the sandboxes whose
//! devices could not be made where the configuration allows that. What a disk is, its layers say.

use std::path::Path;

use async_trait::async_trait;
use cowslip_host::Site;
use cowslip_ledger::{LayerRecord, Owner};
use cowslip_model::{DiskChain, DiskFormat, SandboxId};

use crate::changes::Changes;
use crate::copy::Copy;
use crate::dm::Dm;
use crate::{Backend, FlattenStats, FreezeStyle, LiveDisk, StoreError, Volumes};

/// The backend.
pub(crate) struct Mixed {
    pub(crate) dm: Dm,
    pub(crate) copy: Copy,
}

impl Mixed {
    fn of(&self, format: DiskFormat) -> &dyn Volumes {
        match format {
            DiskFormat::Raw => &self.copy,
            // One of a foreign format is refused there by name.
            DiskFormat::Snapshot | DiskFormat::Qcow2 => &self.dm,
        }
    }

    /// All layers of a disk are of one format.
    fn of_disk(&self, layers: &[LayerRecord]) -> &dyn Volumes {
        self.of(layers.last().map_or(self.format(), |top| top.format))
    }
}

#[async_trait]
impl Volumes for Mixed {
    fn backend(&self) -> Backend {
        Backend::Dm
    }

    fn format(&self) -> DiskFormat {
        self.dm.format()
    }

    fn format_over(&self, below: DiskFormat) -> DiskFormat {
        self.of(below).format()
    }

    fn freeze_style(&self, top: DiskFormat) -> FreezeStyle {
        self.of(top).freeze_style(top)
    }

    async fn make_layer(
        &self,
        site: &Site,
        layer: &LayerRecord,
        below: Option<&LayerRecord>,
    ) -> Result<(), StoreError> {
        self.of(layer.format).make_layer(site, layer, below).await
    }

    async fn activate(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<DiskChain, StoreError> {
        self.of_disk(layers).activate(site, owner, layers).await
    }

    async fn check(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<(), StoreError> {
        self.of_disk(layers).check(site, owner, layers).await
    }

    async fn retire(&self, site: &Site) -> Result<(), StoreError> {
        self.dm.retire(site).await
    }

    async fn prepare_freeze(
        &self,
        site: &Site,
        top: &LayerRecord,
        other: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<(), StoreError> {
        let volumes = self.of(top.format);
        volumes.prepare_freeze(site, top, other, disk).await
    }

    async fn freeze(
        &self,
        site: &Site,
        top: &LayerRecord,
        other: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<(), StoreError> {
        self.of(top.format).freeze(site, top, other, disk).await
    }

    async fn write_out(&self, site: &Site, sandbox: SandboxId) -> Result<(), StoreError> {
        self.dm.write_out(site, sandbox).await
    }

    async fn settle(&self, site: &Site, sandbox: SandboxId) -> Result<(), StoreError> {
        self.dm.settle(site, sandbox).await
    }

    async fn is_written(
        &self,
        site: &Site,
        layer: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<bool, StoreError> {
        self.of(layer.format).is_written(site, layer, disk).await
    }

    async fn sync(&self, site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
        self.of(layer.format).sync(site, layer).await
    }

    fn usage(&self, site: &Site, layer: &LayerRecord) -> Result<u64, StoreError> {
        self.of(layer.format).usage(site, layer)
    }

    async fn changes(&self, site: &Site, layer: &LayerRecord) -> Result<Changes, StoreError> {
        self.of(layer.format).changes(site, layer).await
    }

    async fn flatten(
        &self,
        site: &Site,
        layers: &[LayerRecord],
        owner: Owner,
        out: &Path,
    ) -> Result<FlattenStats, StoreError> {
        self.of_disk(layers).flatten(site, layers, owner, out).await
    }

    fn merges(&self) -> bool {
        true
    }

    async fn merge(
        &self,
        site: &Site,
        layers: &[LayerRecord],
        into: &LayerRecord,
    ) -> Result<(), StoreError> {
        self.of(into.format).merge(site, layers, into).await
    }
}
