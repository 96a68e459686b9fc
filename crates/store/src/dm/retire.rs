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
///
/// What was only to be made comes last: it is found by what it would have stood on, which may be what
/// another still uses.
pub(super) fn retire(site: &Site) -> Result<(), StoreError> {
    let mut failed: HashSet<HandleId> = HashSet::new();
    let mut first: Option<StoreError> = None;
    loop {
        let rows = shared(site)?;
        let used: HashSet<HandleId> = rows.iter().flat_map(|row| row.depends_on.clone()).collect();
        let mut unused: Vec<&HandleRow> = rows
            .iter()
            .rev()
            .filter(|row| matches!(row.owner, Owner::Layer(_) | Owner::Template(_)))
            .filter(|row| !used.contains(&row.id) && !failed.contains(&row.id))
            .collect();
        if unused.is_empty() {
            return first.map_or(Ok(()), Err);
        }
        if unused.iter().any(|row| row.identity.is_some()) {
            unused.retain(|row| row.identity.is_some());
        }
        let mut released = Vec::with_capacity(unused.len());
        for row in unused {
            match site.host.release(row) {
                Ok(()) => released.push(row),
                Err(error) => {
                    failed.insert(row.id);
                    first.get_or_insert(error.into());
                }
            }
        }
        site.ledger.forget_all(&released)?;
    }
}
