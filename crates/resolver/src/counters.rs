//! What a resolver counts.

use std::sync::atomic::{AtomicU64, Ordering};

use cowslip_model::api::NameCounts;

/// One of [`NameCounts`] while it grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds one, and says how many there are.
    pub(crate) fn add(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// [`NameCounts`] while they grow.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) asked: Counter,
    pub(crate) refused: Counter,
    pub(crate) rebinding: Counter,
    pub(crate) failed: Counter,
    pub(crate) unopened: Counter,
    pub(crate) dropped: Counter,
}

impl Counters {
    pub(crate) fn counts(&self) -> NameCounts {
        NameCounts {
            asked: self.asked.get(),
            refused: self.refused.get(),
            rebinding: self.rebinding.get(),
            failed: self.failed.get(),
            unopened: self.unopened.get(),
            dropped: self.dropped.get(),
        }
    }
}
