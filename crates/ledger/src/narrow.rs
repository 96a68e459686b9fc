//! Parts of many records. Whole ones are decoded one by one, which takes milliseconds where there are hundreds: too long
//! for what every start and every end of a machine asks.

use crate::db::LedgerError;
use crate::handle::HandleState;
use crate::owner::Owner;
use crate::record::SandboxRecord;
use crate::tx::Tx;

/// Errors as of other queries.
#[allow(clippy::missing_errors_doc)]
impl Tx<'_> {
    /// The sandboxes that have ports of the host, or will have when they run.
    pub fn publishing(&self) -> Result<Vec<SandboxRecord>, LedgerError> {
        self.many(
            "SELECT record FROM sandboxes WHERE record ->> '$.spec.network.publish' <> '[]' ORDER BY id",
            &[],
        )
    }

    /// The slots of all sandboxes, in no order.
    pub fn slots(&self) -> Result<Vec<u32>, LedgerError> {
        self.many(
            "SELECT CAST(record ->> '$.slot' AS TEXT) FROM sandboxes",
            &[],
        )
    }

    /// Whose the handles of a kind are, and how far each has come, in the order of reservation.
    pub fn owners_of_kind(&self, kind: &str) -> Result<Vec<(Owner, HandleState)>, LedgerError> {
        self.many(
            "SELECT json_array(owner, state) FROM handles WHERE kind = ?1 ORDER BY seq",
            &[&kind],
        )
    }
}
