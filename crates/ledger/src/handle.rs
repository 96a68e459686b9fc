//! Handles: one host object each, and the witnesses that a row exists for it.

use cowslip_model::{HandleId, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::db::{Ledger, LedgerError};
use crate::owner::Owner;

/// A kind of host object. The host layer defines the kinds; a new one needs no change here.
pub trait Resource: Send + Sync + 'static {
    /// The kind's name in the ledger.
    const KIND: &'static str;
    /// Whether such an object may still be there after a power cut, unless a machine holds it: what a
    /// machine holds is of the kernel, or in a file system in memory.
    const OUTLIVES_POWER: bool = false;
    /// What it takes to make the object and to find it again; deterministic, known in advance.
    type Spec: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
    /// What only the kernel can tell once it exists: a pid and its start time, device and inode.
    type Identity: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
}

/// How far a row has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandleState {
    /// The intent is recorded; the object may or may not exist.
    Reserved,
    /// The object exists and its identity is recorded.
    Held,
}

/// One row, as recovery and `doctor` see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandleRow {
    /// Its id.
    pub id: HandleId,
    /// Order of reservation: what is made later never supports what was made earlier.
    pub seq: i64,
    /// Whom it is held for.
    pub owner: Owner,
    /// [`Resource::KIND`].
    pub kind: String,
    /// How far it has come.
    pub state: HandleState,
    /// [`Resource::Spec`] as JSON.
    pub spec: serde_json::Value,
    /// [`Resource::Identity`] as JSON, once held.
    pub identity: Option<serde_json::Value>,
    /// Handles that must outlive this one.
    pub depends_on: Vec<HandleId>,
    /// The host's boot in which it was reserved: kernel objects of another boot are gone.
    pub boot_id: String,
    /// When it was reserved.
    pub created_at: Timestamp,
}

impl HandleRow {
    /// The typed spec, where this row is of the kind `R`.
    ///
    /// # Errors
    /// When the recorded JSON does not fit the kind: a database of another version, or corrupt.
    pub fn spec<R: Resource>(&self) -> Result<R::Spec, LedgerError> {
        serde_json::from_value(self.spec.clone()).map_err(|source| LedgerError::Decode {
            what: self.describe(),
            source,
        })
    }

    /// The typed identity, where there is one.
    ///
    /// # Errors
    /// As for [`HandleRow::spec`].
    pub fn identity<R: Resource>(&self) -> Result<Option<R::Identity>, LedgerError> {
        self.identity
            .clone()
            .map(serde_json::from_value)
            .transpose()
            .map_err(|source| LedgerError::Decode {
                what: self.describe(),
                source,
            })
    }

    /// The row in words, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} {} of {}", self.kind, self.id, self.owner)
    }
}

/// The right to acquire one object. Dropping it unused leaves the row for the reaper.
#[must_use = "a reservation is a promise to acquire; drop it only to give up"]
pub struct Reservation<R: Resource> {
    row: RowGuard,
    spec: R::Spec,
}

/// An object that exists and has a row. Call [`Held::settle`] once its owner is complete; dropping
/// it before that leaves the row for the reaper. Drop does no I/O.
#[must_use = "a held handle is released by the reaper unless it is settled"]
pub struct Held<R: Resource> {
    row: RowGuard,
    spec: R::Spec,
    identity: R::Identity,
}

impl<R: Resource> Reservation<R> {
    pub(crate) fn new(ledger: Ledger, id: HandleId, spec: R::Spec) -> Self {
        Self {
            row: RowGuard {
                ledger,
                id,
                armed: true,
            },
            spec,
        }
    }

    /// What is to be acquired.
    #[must_use]
    pub fn spec(&self) -> &R::Spec {
        &self.spec
    }

    /// The row's id.
    #[must_use]
    pub fn id(&self) -> HandleId {
        self.row.id
    }

    /// Records that the object now exists.
    ///
    /// # Errors
    /// When the row cannot be written; the object is then left to the reaper.
    pub fn acquired(self, identity: R::Identity) -> Result<Held<R>, LedgerError> {
        let value = serde_json::to_value(&identity).map_err(|source| LedgerError::Encode {
            what: format!("identity of {} {}", R::KIND, self.row.id),
            source,
        })?;
        self.row.ledger.record_held(self.row.id, R::KIND, &value)?;
        Ok(Held {
            row: self.row,
            spec: self.spec,
            identity,
        })
    }
}

impl<R: Resource> Held<R> {
    /// The row's id, to name it as a dependency.
    #[must_use]
    pub fn id(&self) -> HandleId {
        self.row.id
    }

    /// What was acquired.
    #[must_use]
    pub fn spec(&self) -> &R::Spec {
        &self.spec
    }

    /// What the kernel told of it.
    #[must_use]
    pub fn identity(&self) -> &R::Identity {
        &self.identity
    }

    /// Hands the object over to its owner: it stays until the owner is unwound.
    pub fn settle(mut self) -> HandleId {
        self.row.armed = false;
        self.row.id
    }
}

/// Tells the ledger of an orphan when it is dropped armed.
struct RowGuard {
    ledger: Ledger,
    id: HandleId,
    armed: bool,
}

impl Drop for RowGuard {
    fn drop(&mut self) {
        if self.armed {
            self.ledger.orphaned(self.id);
        }
    }
}
