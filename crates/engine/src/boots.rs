//! Boots that can be called off.
//!
//! A boot may take minutes and holds its sandbox's lock all that time. `rm --force` does not release
//! what the boot is acquiring at that very moment, since a process that has no row yet would stay
//! behind: it tells the boot, and the boot unwinds itself.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowslip_model::SandboxId;
use tokio_util::sync::CancellationToken;

/// A token for every sandbox that is booting, or whose boot was called off.
#[derive(Default)]
pub(crate) struct Boots(Mutex<HashMap<SandboxId, CancellationToken>>);

impl Boots {
    fn table(&self) -> MutexGuard<'_, HashMap<SandboxId, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A boot begins. Its token is cancelled already where it was called off before it came here.
    pub(crate) fn begin(&self, id: SandboxId) -> CancellationToken {
        self.table().entry(id).or_default().clone()
    }

    /// The boot that is under way, or just about to begin, has no future.
    pub(crate) fn call_off(&self, id: SandboxId) {
        self.table().entry(id).or_default().cancel();
    }

    /// What was called off is over; whatever boots next is another.
    pub(crate) fn forget(&self, id: SandboxId) {
        self.table().remove(&id);
    }

    /// A boot has ended by itself.
    pub(crate) fn end(&self, id: SandboxId) {
        let mut table = self.table();
        if table.get(&id).is_some_and(|token| !token.is_cancelled()) {
            table.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_called_off_before_and_after_it_begins() {
        let (boots, id) = (Boots::default(), SandboxId::from_bits(1));
        let boot = boots.begin(id);
        assert!(!boot.is_cancelled());
        boots.call_off(id);
        assert!(boot.is_cancelled());
        boots.end(id);
        assert!(boots.begin(id).is_cancelled(), "one that came late");
        boots.forget(id);
        assert!(!boots.begin(id).is_cancelled(), "the next one");
        boots.end(id);
        assert!(boots.table().is_empty());
    }
}
