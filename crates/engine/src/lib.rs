//! The engine: one file a verb.
//!
//! ```text
//!   verb ─► lock the sandbox ─► mark the transition (ledger) ─► act (host, store, vmm, guest)
//!        ─► publish the new state (ledger, one transaction) ─► event
//!   on failure: unwind by owner, settle the state, keep the cause and the rollback's own error
//! ```
//!
//! - A verb runs in a task of its own: a client that goes away never cancels what must be cleaned up.
//! - Nothing is acquired but through the ledger; nothing is released but by [`unwind`].
//! - Recovery ([`verbs::recover`]) carries out `cowslip_ledger::plan` with the same functions.

mod boots;
pub mod config;
mod confinement;
pub mod error;
pub mod guest;
pub mod images;
pub mod live;
mod locks;
mod lookup;
mod monitors;
mod names;
mod network;
pub mod parts;
pub mod session;
mod tasks;
pub mod unwind;
pub mod verbs;
mod view;
mod water;

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cowslip_host::Site;
use cowslip_ledger::{EventRecord, Owner};
use cowslip_model::api::Event;
use cowslip_model::{CheckpointId, SandboxId};
use cowslip_store::Volumes;
use tokio::sync::{Notify, OwnedMutexGuard, broadcast};

pub use config::Config;
pub use error::{EngineError, OpenError};
pub use network::netns_spec;
pub use parts::Parts;
pub use session::{ClientEnd, ControlFrame, Incoming, ServerFrame, Session};

use crate::boots::Boots;
use crate::guest::Guests;
use crate::images::Images;
use crate::live::LiveTable;
use crate::locks::Locks;
use crate::network::{Listeners, Networks, Resolvers, Spares};
use crate::parts::Monitors;
use crate::water::Water;

/// Events that a slow subscriber may be behind before it is told that it missed some.
const EVENT_BACKLOG: usize = 1024;

/// The engine of one state directory.
pub struct Engine {
    config: Config,
    site: Site,
    volumes: Arc<dyn Volumes>,
    monitors: Arc<dyn Monitors>,
    guests: Arc<dyn Guests>,
    images: Arc<dyn Images>,
    live: LiveTable,
    boots: Boots,
    water: Water,
    networks: Networks,
    spares: Arc<Spares>,
    resolvers: Resolvers,
    listeners: Listeners,
    /// Rung when a verb finds space that the last look did not: guests that stand still may go on.
    space_found: Arc<Notify>,
    locks: Locks<SandboxId>,
    /// Held while a checkpoint's image is made whole.
    completing: Locks<CheckpointId>,
    /// Held while unused layers are collected, and while templates are imported or removed.
    collecting: tokio::sync::Mutex<()>,
    /// What pulls images, once one was asked for.
    puller: tokio::sync::OnceCell<Arc<cowslip_registry::Puller>>,
    /// Held while a template is made of an image's layers.
    importing: Locks<verbs::LayersKey>,
    /// Held while layers are merged.
    merging: tokio::sync::Mutex<()>,
    events: broadcast::Sender<Event>,
    /// Owners of handles that are being made and have no record yet.
    making: Mutex<BTreeSet<Owner>>,
    /// Kernels whose initramfs was found to hold this program's agent.
    refreshed: Mutex<HashSet<PathBuf>>,
    /// Rung when a TTL comes or goes.
    ttl_changed: Notify,
    notes: Vec<String>,
    _lock: Option<cowslip_ledger::lock::StateLock>,
}

impl Engine {
    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The ledger, the host and the layout.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Waits until no other verb works on this sandbox.
    async fn lock(&self, id: SandboxId) -> OwnedMutexGuard<()> {
        self.locks.lock(id).await
    }

    /// The same, if no other verb does now.
    fn try_lock(&self, id: SandboxId) -> Option<OwnedMutexGuard<()>> {
        self.locks.try_lock(id)
    }

    /// Events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Tells subscribers of an event that the ledger has.
    fn announce(&self, event: EventRecord) {
        tracing::info!(kind = event.kind, id = event.id, name = event.name, "event");
        // No subscriber is no failure.
        let _ = self.events.send(view::event(event));
    }
}

/// Runs a verb to its end whatever becomes of the caller.
async fn to_the_end<T: Send + 'static>(
    verb: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::spawn(verb).await {
        Ok(result) => result,
        Err(error) => Err(EngineError::Internal(format!(
            "a task of the engine died: {error}"
        ))),
    }
}

/// Runs blocking work where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| EngineError::Internal(format!("a thread of the engine died: {error}")))
}
