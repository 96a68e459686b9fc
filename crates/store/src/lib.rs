//! Volumes: layers over a template, by one of several backends.
//!
//! | backend | needs | a layer is | a freeze |
//! |---|---|---|---|
//! | `dm`    | root, device-mapper | an exception store under dm-snapshot | the disk's table is switched |
//! | `qcow2` | nothing | an overlay over the one below | the guest goes on in a new overlay |
//! | `copy`  | nothing | a whole disk | a copy (shared extents where the file system can) is set aside |
//!
//! The engine decides *when*; a backend knows *how*. A backend acquires its files through the ledger
//! as handles of [`Owner::Layer`] and never deletes anything: what nothing stands on any more is
//! unwound by the engine.
//!
//! [`Owner::Layer`]: cowslip_ledger::Owner::Layer

pub mod changes;
mod compare;
mod copy;
mod dm;
pub mod exceptions;
mod flatten;
mod layer;
mod mixed;
pub mod qcow2;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::{HostError, Site};
use cowslip_ledger::{LayerRecord, LedgerError, Owner};
use cowslip_model::{
    ByteSize, DiskChain, DiskFormat, DiskLayer, Durability, LayerId, SandboxId, TemplateId,
};

pub use flatten::FlattenStats;

use changes::Changes;

/// Which backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Exception stores of dm-snapshot.
    Dm,
    /// qcow2 overlays.
    Qcow2,
    /// Whole copies.
    Copy,
}

impl Backend {
    /// Its lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dm => "dm",
            Self::Qcow2 => "qcow2",
            Self::Copy => "copy",
        }
    }
}

/// The backend's implementation.
#[must_use]
pub fn open(backend: Backend, durability: Durability) -> Arc<dyn Volumes> {
    match backend {
        Backend::Dm => Arc::new(mixed::Mixed {
            dm: dm::Dm::new(durability),
            copy: copy::Copy { durability },
        }),
        Backend::Qcow2 => Arc::new(qcow2::Qcow2 { durability }),
        Backend::Copy => Arc::new(copy::Copy { durability }),
    }
}

/// What a freeze leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeStyle {
    /// The present top is frozen, and the sandbox goes on in the new layer over it.
    NewTop,
    /// The new layer is frozen, a copy of the present top, and the sandbox goes on where it was.
    SetAside,
}

/// A volume operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A template's image is gone or is not what was imported.
    #[error("the image \"{path}\" of template {template} {why}: import it again")]
    Template {
        /// The template.
        template: TemplateId,
        /// Its image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A layer's file is gone or is not a layer over what it should be.
    #[error("the file \"{path}\" of layer {layer} {why}")]
    Layer {
        /// The layer.
        layer: LayerId,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A disk that cannot be made.
    #[error("a disk of {size} is {why}")]
    Size {
        /// The size.
        size: ByteSize,
        /// What is wrong with it.
        why: String,
    },
    /// The machine did not change over.
    #[error("change the disk of sandbox {sandbox}: {message}")]
    Swap {
        /// The sandbox.
        sandbox: SandboxId,
        /// The monitor's error.
        message: String,
    },
    /// A volume without a single layer: there is nothing the guest could write to.
    #[error("sandbox {sandbox} has no layer of its own: remove it")]
    NoLayers {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// A flatten of no layer at all.
    #[error("flatten nothing for {owner}: a disk has one layer at least")]
    Nothing {
        /// Whom the image was for.
        owner: Owner,
    },
    /// A merge on a backend that cannot.
    #[error("merge layers into {layer}: this backend cannot")]
    NoMerge {
        /// The layer that was to be made.
        layer: LayerId,
    },
    /// The engine is ending.
    #[error("{operation}: the engine is ending")]
    Stopped {
        /// What was not done.
        operation: &'static str,
    },
    /// The host layer failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl StoreError {
    /// Whether the host failed at it, and not what the volume is made of.
    #[must_use]
    pub const fn is_of_host(&self) -> bool {
        matches!(self, Self::Host(_))
    }
}

/// The side of a running machine that a freeze needs.
#[async_trait]
pub trait LiveDisk: Send + Sync {
    /// From now on the guest writes to `next`, an empty overlay over the present top.
    ///
    /// # Errors
    /// When the machine did not change over; it still writes the old top then.
    async fn change_disk(&self, next: &DiskLayer) -> Result<(), StoreError>;

    /// Whose it is.
    fn sandbox(&self) -> SandboxId;

    /// The file that the guest's writes go to now.
    ///
    /// # Errors
    /// When the machine does not tell.
    async fn disk_top(&self) -> Result<PathBuf, StoreError>;
}

/// A backend.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// Which one.
    fn backend(&self) -> Backend;

    /// How its layers are laid out.
    fn format(&self) -> DiskFormat;

    /// How a new layer over one of this format is laid out.
    fn format_over(&self, _below: DiskFormat) -> DiskFormat {
        self.format()
    }

    /// What a freeze of a top of this format leaves behind.
    fn freeze_style(&self, top: DiskFormat) -> FreezeStyle;

    /// Makes the file of `layer`, writable and without changes, over `below` (its frozen parent), or
    /// over the template where there is none. `layer.size` is the size of the disk.
    ///
    /// # Errors
    /// When the template or parent is damaged, or the disk is full; nothing is left but the row.
    async fn make_layer(
        &self,
        site: &Site,
        layer: &LayerRecord,
        below: Option<&LayerRecord>,
    ) -> Result<(), StoreError>;

    /// Makes the chain (base first, the writable layer last) ready to be opened by a monitor, checking
    /// that template and layers are what they should be.
    ///
    /// # Errors
    /// When one of them is damaged or gone.
    async fn activate(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<DiskChain, StoreError>;

    /// Checks a chain as [`Volumes::activate`] does, and does nothing else.
    ///
    /// # Errors
    /// When a part of it is damaged or gone.
    async fn check(
        &self,
        site: &Site,
        owner: SandboxId,
        layers: &[LayerRecord],
    ) -> Result<(), StoreError> {
        self.activate(site, owner, layers).await.map(drop)
    }

    /// Takes down what was made ready and no machine uses any more. Called when a machine has ended;
    /// what fails is tried again the next time.
    ///
    /// # Errors
    /// When something could not be taken down.
    async fn retire(&self, _site: &Site) -> Result<(), StoreError> {
        Ok(())
    }

    /// Before the vCPUs stand still: whatever of a freeze needs no standstill.
    ///
    /// # Errors
    /// When it failed; nothing has changed for the machine then.
    async fn prepare_freeze(
        &self,
        _site: &Site,
        _top: &LayerRecord,
        _other: &LayerRecord,
        _disk: &dyn LiveDisk,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whether the guest's writes go to `layer` now.
    ///
    /// # Errors
    /// When that cannot be found out.
    async fn is_written(
        &self,
        site: &Site,
        layer: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<bool, StoreError> {
        Ok(disk.disk_top().await? == self.path(site, layer))
    }

    /// With the vCPUs standing still: freezes the disk of a running machine. `other` is the new layer
    /// ([`FreezeStyle`]); for [`FreezeStyle::NewTop`] its file exists, for [`FreezeStyle::SetAside`]
    /// it is made here.
    ///
    /// # Errors
    /// When it failed; the machine writes the old top then, as before.
    async fn freeze(
        &self,
        site: &Site,
        top: &LayerRecord,
        other: &LayerRecord,
        disk: &dyn LiveDisk,
    ) -> Result<(), StoreError>;

    /// Writes what waits in the host's cache above the disk of a running machine: some monitors have no way
    /// around that cache. A layer's file tells all that the guest wrote after that, and a freeze has less
    /// to write while the guest stands still.
    ///
    /// # Errors
    /// When the disk refuses.
    async fn write_out(&self, _site: &Site, _sandbox: SandboxId) -> Result<(), StoreError> {
        Ok(())
    }

    /// After a freeze, whatever became of it: what was held for either outcome, and the disk of this
    /// sandbox does not stand on, is free to go. The caller sees to it that no other freeze of it runs.
    ///
    /// # Errors
    /// When it could not be found out or written down; what is held too much goes with the machine.
    async fn settle(&self, _site: &Site, _sandbox: SandboxId) -> Result<(), StoreError> {
        Ok(())
    }

    /// Presses a frozen layer onto the disk: called before what needs it is published.
    ///
    /// # Errors
    /// When the disk refuses.
    async fn sync(&self, site: &Site, layer: &LayerRecord) -> Result<(), StoreError>;

    /// Bytes that the layer occupies on the host's disk.
    ///
    /// # Errors
    /// When it cannot be read.
    fn usage(&self, site: &Site, layer: &LayerRecord) -> Result<u64, StoreError>;

    /// What a layer changed of what is below it. Of a layer that a machine writes it is no more than
    /// what the file says at the moment.
    ///
    /// # Errors
    /// When the layer is damaged or gone.
    async fn changes(&self, site: &Site, layer: &LayerRecord) -> Result<Changes, StoreError>;

    /// Writes the disk that `layers` (base first, none being written) make of their template to a new
    /// file at `out`, a handle of `owner`: one standalone image of the size of the last layer's disk.
    ///
    /// # Errors
    /// When one of them is damaged or gone, or the disk is full; nothing is left but the row.
    async fn flatten(
        &self,
        site: &Site,
        layers: &[LayerRecord],
        owner: Owner,
        out: &Path,
    ) -> Result<FlattenStats, StoreError>;

    /// Whether frozen layers can be made one under a disk that is in use.
    fn merges(&self) -> bool {
        false
    }

    /// Makes `into`, a frozen layer without a parent, of what `layers` (a whole chain of frozen layers,
    /// base first) changed together. A layer that stands on the last of them can stand on `into`, once
    /// that is synced: it takes the place of layers that were published.
    ///
    /// # Errors
    /// When one of them is damaged or gone, or the disk is full; nothing is left but the row.
    async fn merge(
        &self,
        _site: &Site,
        _layers: &[LayerRecord],
        into: &LayerRecord,
    ) -> Result<(), StoreError> {
        Err(StoreError::NoMerge { layer: into.id })
    }

    /// The file of a layer.
    fn path(&self, site: &Site, layer: &LayerRecord) -> PathBuf {
        site.layout.layer(layer.id, layer.format)
    }
}
