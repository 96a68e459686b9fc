//! Running machines, as this engine knows them. Everything here can be rebuilt from the ledger and
//! the host: it is a cache, never a record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowslip_model::SandboxId;
use cowslip_vmm::{Machine, VmmError};

use crate::guest::Guest;

/// A machine and, once there is one, the connection to its guest.
pub(crate) struct Live {
    pub(crate) machine: Arc<dyn Machine>,
    guest: Mutex<Option<Arc<dyn Guest>>>,
    /// Held while a connection is being made: the channel to the agent has room for one.
    pub(crate) connecting: tokio::sync::Mutex<()>,
}

impl Live {
    pub(crate) fn new(machine: Arc<dyn Machine>, guest: Option<Arc<dyn Guest>>) -> Arc<Self> {
        Arc::new(Self {
            machine,
            guest: Mutex::new(guest),
            connecting: tokio::sync::Mutex::new(()),
        })
    }

    /// Lets the vCPUs run again. One failed call is not the guest's end: it is made once more.
    pub(crate) async fn resume(&self) -> Result<(), VmmError> {
        match self.machine.resume().await {
            Err(error) if !matches!(error, VmmError::Ended { .. }) => {
                tracing::warn!(%error, "resume the machine once more");
                self.machine.resume().await
            }
            done => done,
        }
    }

    /// The guest, if the connection to it stands.
    pub(crate) fn guest(&self) -> Option<Arc<dyn Guest>> {
        let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        guest.clone().filter(|guest| !guest.is_closed())
    }

    /// Whether the guest ever answered, be the connection gone by now or not.
    pub(crate) fn knows_guest(&self) -> bool {
        let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        guest.is_some()
    }

    /// Gives the connection to the guest up; it ends when nobody else uses it.
    pub(crate) fn forget_guest(&self) {
        self.guest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    pub(crate) fn set_guest(&self, guest: Arc<dyn Guest>) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(guest);
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
