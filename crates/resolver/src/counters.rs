//! What a resolver counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What became of a sandbox's questions so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions that were understood.
    pub asked: u64,
    /// Of these, those that the rules refuse.
    pub refused: u64,
    /// Answers out of which addresses were taken, since only a rule of their own opens them.
    pub rebinding: u64,
    /// Questions to which the host's name servers had no answer.
    pub failed: u64,
    /// Answers that were not given, since their addresses could not be opened.
    pub unopened: u64,
    /// Questions that were left unanswered, since too many were under way.
    pub dropped: u64,
}

/// One of [`Counts`] while it grows.
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

/// [`Counts`] while they grow.
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
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            asked: self.asked.get(),
            refused: self.refused.get(),
            rebinding: self.rebinding.get(),
            failed: self.failed.get(),
            unopened: self.unopened.get(),
            dropped: self.dropped.get(),
        }
    }
}
