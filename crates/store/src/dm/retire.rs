//! Taking down what nothing stands on any more.

use std::collections::HashSet;

use cowslip_host::{Device, Loop, Site};
use cowslip_ledger::{HandleRow, LedgerError, Owner, Resource};
use cowslip_model::HandleId;

use crate::StoreError;

/// Devices and loop devices of layers and templates: not those of machines, which go with them.
fn shared(site: &Site) -> Result<Vec<HandleRow>, StoreError> {
    let rows = site.ledger.read::<_, LedgerError>(|tx| {
        let mut rows = tx.handles_of_kind(Device::KIND)?;
        rows.extend(tx.handles_of_kind(Loop::KIND)?);
        Ok(rows)
    })?;
    Ok(rows)
}

/// Releases them from the top down. Every one is tried, and the first failure reported (R8, R18).
pub(super) fn retire(site: &Site) -> Result<(), StoreError> {
    let mut failed: HashSet<HandleId> = HashSet::new();
    let mut first: Option<StoreError> = None;
    loop {
        let rows = shared(site)?;
        let used: HashSet<HandleId> = rows.iter().flat_map(|row| row.depends_on.clone()).collect();
        let unused = |row: &HandleRow, failed: &HashSet<HandleId>| {
            matches!(row.owner, Owner::Layer(_) | Owner::Template(_))
                && !used.contains(&row.id)
                && !failed.contains(&row.id)
        };
        let mut progress = false;
        for row in rows.iter().rev() {
            if !unused(row, &failed) {
                continue;
            }
            let released = site.host.release(row).map_err(StoreError::from);
            match released.and_then(|()| Ok(site.ledger.forget(row)?)) {
                Ok(()) => progress = true,
                Err(error) => {
                    failed.insert(row.id);
                    first.get_or_insert(error);
                }
            }
        }
        if !progress {
            return first.map_or(Ok(()), Err);
        }
    }
}
