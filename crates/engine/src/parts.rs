//! What an engine is put together from: the real parts on Linux, simulated ones in tests.

use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::Site;
use cowslip_ledger::MonitorInfo;
use cowslip_ledger::lock::StateLock;
use cowslip_model::{Isolation, MonitorKind};
use cowslip_store::Volumes;
use cowslip_vmm::qemu::Trial;
use cowslip_vmm::{Vmm, VmmError};

use crate::config::Config;
use crate::guest::Guests;
use crate::images::Images;
pub use crate::monitors::Usual;

/// Everything an engine needs.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The ledger, the host and the layout.
    pub site: Site,
    /// The volume backend.
    pub volumes: Arc<dyn Volumes>,
    /// Where monitors come from.
    pub monitors: Arc<dyn Monitors>,
    /// Connections to guests.
    pub guests: Arc<dyn Guests>,
    /// What makes images of disks that guests wrote.
    pub images: Arc<dyn Images>,
    /// Things to tell in `info` and `doctor`: why which part was chosen.
    pub notes: Vec<String>,
    /// The lock on the state directory; none in a simulation.
    pub lock: Option<StateLock>,
}

/// Finds monitors when they are first needed, so that an engine opens on a host that has none yet.
#[async_trait]
pub trait Monitors: Send + Sync + 'static {
    /// The monitor of this kind.
    ///
    /// # Errors
    /// When there is none, naming what has it. Less isolation than asked for is never given.
    async fn vmm(&self, kind: MonitorKind, isolation: Isolation) -> Result<Arc<dyn Vmm>, VmmError>;

    /// The monitor of sandboxes that ask for none, and why it is that one. Where it depends on whether a guest boots
    /// on KVM, and that is not known, it is tried with `trial`, if there is one.
    ///
    /// # Errors
    /// When the trial could not be made.
    async fn usual(&self, trial: Option<(&Site, &Trial)>) -> Result<Usual, VmmError>;

    /// What is known of the usual one without finding out more.
    fn describe(&self) -> Described;
}

/// The usual monitor in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// With version and accelerator; none: it was not looked for yet.
    pub monitor: Option<String>,
    /// Why that one.
    pub reason: String,
    /// Why that accelerator.
    pub accelerator_reason: String,
}

/// One monitor, known from the start.
pub struct FixedMonitor(pub Arc<dyn Vmm>);

#[async_trait]
impl Monitors for FixedMonitor {
    async fn vmm(&self, _: MonitorKind, _: Isolation) -> Result<Arc<dyn Vmm>, VmmError> {
        Ok(Arc::clone(&self.0))
    }

    async fn usual(&self, _: Option<(&Site, &Trial)>) -> Result<Usual, VmmError> {
        Ok(Usual {
            kind: MonitorKind::Qemu,
            reason: "it was given".to_owned(),
        })
    }

    fn describe(&self) -> Described {
        Described {
            monitor: Some(in_words(&self.0.info())),
            reason: "it was given".to_owned(),
            accelerator_reason: "it was given".to_owned(),
        }
    }
}

/// A monitor in words: `qemu 7.2.22 (tcg)`.
#[must_use]
pub fn in_words(info: &MonitorInfo) -> String {
    format!("{} {} ({})", info.kind, info.version, info.accelerator)
}
