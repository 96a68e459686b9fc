//! Running machines, as this engine knows them. Everything here can be rebuilt from the ledger and
//! the host: it is a cache, never a record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowslip_model::SandboxId;
use cowslip_vmm::Machine;

use crate::guest::Guest;

/// A machine and the connection to its guest.
pub(crate) struct Live {
    pub(crate) machine: Arc<dyn Machine>,
    guest: Mutex<Arc<dyn Guest>>,
}

impl Live {
    pub(crate) fn new(machine: Arc<dyn Machine>, guest: Arc<dyn Guest>) -> Arc<Self> {
        Arc::new(Self {
            machine,
            guest: Mutex::new(guest),
        })
    }

    pub(crate) fn guest(&self) -> Arc<dyn Guest> {
        Arc::clone(&self.guest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn replace_guest(&self, guest: Arc<dyn Guest>) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = guest;
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct LiveTable(Mutex<HashMap<SandboxId, Arc<Live>>>);

impl LiveTable {
    fn table(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Live>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: SandboxId) -> Option<Arc<Live>> {
        self.table().get(&id).cloned()
    }

    pub(crate) fn insert(&self, id: SandboxId, live: Arc<Live>) {
        self.table().insert(id, live);
    }

    pub(crate) fn remove(&self, id: SandboxId) -> Option<Arc<Live>> {
        self.table().remove(&id)
    }

    /// Whether the sandbox's machine still is this very one.
    pub(crate) fn is(&self, id: SandboxId, live: &Arc<Live>) -> bool {
        self.table()
            .get(&id)
            .is_some_and(|current| Arc::ptr_eq(current, live))
    }
}
