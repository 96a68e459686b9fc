//! How full the host's disk is, and who stands still because of it. Pure bookkeeping; what is done
//! about it is in `verbs/low_water.rs`.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cowslip_host::usage::Space;
use cowslip_model::{ByteSize, SandboxId};

/// The fastest that guests together may fill a disk, in bytes a second: how soon it must be looked at
/// again follows from it.
const FASTEST: u64 = 4 << 30;
/// Not more often: near the mark there is at least as much left as can be written meanwhile.
const SOONEST: Duration = Duration::from_millis(100);
/// Not less often: space may be freed, or taken by others, at any time.
const LATEST: Duration = Duration::from_secs(5);

/// At which free space guests stand still, and at which they go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    low: u64,
    high: u64,
}

impl Marks {
    /// Of a disk of `total` bytes; a mark is never more than a sixteenth of it. Zero: there is none.
    pub(crate) fn new(low_water: ByteSize, total: u64) -> Self {
        let low = low_water.bytes().min(total / 16);
        Self {
            low,
            high: low.saturating_add(low / 4),
        }
    }

    /// When to look again.
    pub(crate) fn next_look(self, free: u64) -> Duration {
        if self.low == 0 {
            return LATEST;
        }
        let left = free.saturating_sub(self.low);
        let millis = left.saturating_mul(1000) / FASTEST;
        Duration::from_millis(millis).clamp(SOONEST, LATEST)
    }
}

#[derive(Debug, Default)]
struct State {
    /// The space there was when the mark was passed.
    low: Option<Space>,
    frozen: BTreeSet<SandboxId>,
}

/// The present level.
#[derive(Debug, Default)]
pub(crate) struct Water(Mutex<State>);

/// What a look at the disk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// As it was.
    None,
    /// It passed the mark downwards.
    Low,
    /// It passed the upper mark upwards.
    Recovered,
}

impl Water {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a look at the disk.
    pub(crate) fn look(&self, space: Space, marks: Marks) -> Change {
        let mut state = self.state();
        if state.low.is_none() && space.free < marks.low {
            state.low = Some(space);
            Change::Low
        } else if state.low.is_some() && space.free >= marks.high {
            state.low = None;
            Change::Recovered
        } else {
            Change::None
        }
    }

    /// The space there was when it became too little; none while there is enough.
    pub(crate) fn low(&self) -> Option<Space> {
        self.state().low
    }

    pub(crate) fn is_frozen(&self, id: SandboxId) -> bool {
        self.state().frozen.contains(&id)
    }

    /// Notes that a sandbox stands still; false: it did already.
    pub(crate) fn freeze(&self, id: SandboxId) -> bool {
        self.state().frozen.insert(id)
    }

    /// Notes that it goes on, or has ended.
    pub(crate) fn thaw(&self, id: SandboxId) -> bool {
        self.state().frozen.remove(&id)
    }

    pub(crate) fn frozen(&self) -> Vec<SandboxId> {
        self.state().frozen.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn space(free: u64) -> Space {
        Space {
            free,
            total: 100 * GIB,
        }
    }

    #[test]
    fn between_the_marks_nothing_changes() {
        let (water, marks) = (Water::default(), Marks::new(ByteSize(GIB), 100 * GIB));
        let seen: Vec<Change> = [2 * GIB, GIB, GIB - 1, GIB / 2, GIB, GIB + GIB / 4 - 1]
            .map(|free| water.look(space(free), marks))
            .to_vec();
        let wanted = [Change::None; 6];
        assert_eq!(seen[..2], wanted[..2]);
        assert_eq!(seen[2], Change::Low);
        assert_eq!(seen[3..], wanted[3..]);
        assert_eq!(water.look(space(GIB + GIB / 4), marks), Change::Recovered);
        assert_eq!(water.low(), None);
    }

    #[test]
    fn a_small_disk_has_a_small_mark_and_none_is_none() {
        let marks = Marks::new(ByteSize(GIB), 160 << 20);
        assert_eq!(marks.low, 10 << 20);
        let none = Marks::new(ByteSize(0), 100 * GIB);
        assert_eq!(Water::default().look(space(0), none), Change::None);
        assert_eq!(none.next_look(0), LATEST);
    }

    #[test]
    fn the_nearer_the_mark_the_sooner_the_look() {
        let marks = Marks::new(ByteSize(GIB), 100 * GIB);
        assert_eq!(marks.next_look(GIB), SOONEST);
        assert_eq!(marks.next_look(5 * GIB), Duration::from_secs(1));
        assert_eq!(marks.next_look(90 * GIB), LATEST);
    }
}
