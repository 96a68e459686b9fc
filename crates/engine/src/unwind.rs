//! The one unwinding: failed create, remove, expiry, failed restore and recovery all release an
//! owner's handles here, in reverse order of their making.

use std::collections::HashSet;

use cowslip_host::Site;
use cowslip_ledger::{HandleRow, LedgerError, Owner};
use cowslip_model::HandleId;

/// What could not be released; it stays in the ledger and can be tried again.
#[derive(Debug, thiserror::Error)]
#[error("release {owner}: {}", failures.join("; "))]
pub struct UnwindError {
    /// Whose handles.
    pub owner: Owner,
    /// One line for each that is left.
    pub failures: Vec<String>,
}

/// Releases everything that is held for `owner`. Every step is tried and every failure reported
/// (R8); only what a handle that did not go still needs is left alone (R12). Blocking.
///
/// # Errors
/// When something is left.
pub fn unwind(site: &Site, owner: Owner) -> Result<(), UnwindError> {
    let rows = site
        .ledger
        .read(|tx| tx.handles_of(owner))
        .map_err(|error: LedgerError| UnwindError {
            owner,
            failures: vec![error.to_string()],
        })?;
    let mut needed: HashSet<HandleId> = HashSet::new();
    let mut failures = Vec::new();
    let mut released = Vec::new();
    for row in rows.iter().rev() {
        let outcome = if needed.contains(&row.id) {
            Err(format!(
                "{} is needed by what could not be released",
                row.describe()
            ))
        } else {
            let outcome = site.host.release(row);
            outcome.map_err(|error| crate::error::chain(&error).join(": "))
        };
        match outcome {
            Ok(()) => released.push(row),
            Err(failure) => {
                needed.extend(&row.depends_on);
                failures.push(failure);
            }
        }
    }
    if let Err(error) = site.ledger.forget_all(&released) {
        failures.push(error.to_string());
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(UnwindError { owner, failures })
    }
}

/// Releases one handle and forgets it (R48).
pub(crate) fn release(site: &Site, row: &HandleRow) -> Result<(), String> {
    site.host
        .release(row)
        .map_err(|error| crate::error::chain(&error).join(": "))?;
    site.ledger.forget(row).map_err(|error| error.to_string())
}
