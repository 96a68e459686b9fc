//! What the failure harness plugs into every step: a recorder that lists the steps of a run, and a
//! script that makes one of them go wrong.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cowslip_ledger::{Faults, Step, Verdict};

/// Lets everything pass and writes down the steps.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    /// The steps so far, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<String> {
        lock(&self.0).clone()
    }
}

impl Faults for Recorder {
    fn verdict(&self, step: Step<'_>) -> Verdict {
        lock(&self.0).push(step.to_owned());
        Verdict::Proceed
    }
}

/// Makes one step, or several in a row, go wrong.
///
/// After a crash the engine is dead: every later step is refused, so nothing that still runs of it,
/// and no destructor, has an effect.
#[derive(Debug)]
pub struct Script {
    first: usize,
    times: usize,
    verdict: Verdict,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    steps: Vec<String>,
    dead: bool,
    healed: bool,
    fired: Option<String>,
}

impl Script {
    /// Gives `verdict` at the step number `index`, counted from 0.
    #[must_use]
    pub fn at(index: usize, verdict: Verdict) -> Self {
        Self {
            first: index,
            times: 1,
            verdict,
            state: Mutex::default(),
        }
    }

    /// The same, for `times` steps in a row: a failure that its own clean-up meets too.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// The step that first went wrong; none while the run has not come that far.
    #[must_use]
    pub fn fired(&self) -> Option<String> {
        lock(&self.state).fired.clone()
    }

    /// Whether the engine counts as dead.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    /// The steps asked for so far, those of the dead engine not counted.
    #[must_use]
    pub fn steps(&self) -> Vec<String> {
        lock(&self.state).steps.clone()
    }

    /// Lets nothing go wrong any more, however many times are left.
    pub fn heal(&self) {
        lock(&self.state).healed = true;
    }

    /// Kills the engine now, between two steps.
    pub fn kill(&self) {
        lock(&self.state).dead = true;
    }
}

impl Faults for Script {
    fn verdict(&self, step: Step<'_>) -> Verdict {
        let mut state = lock(&self.state);
        if state.dead {
            return Verdict::CrashBefore;
        }
        let index = state.steps.len();
        state.steps.push(step.to_owned());
        if state.healed || index < self.first || index - self.first >= self.times {
            return Verdict::Proceed;
        }
        if self.verdict != Verdict::Proceed {
            state.fired.get_or_insert_with(|| step.to_owned());
        }
        state.dead = matches!(self.verdict, Verdict::CrashBefore | Verdict::CrashAfter);
        self.verdict
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cowslip_ledger::fault::{Fault, Injector};

    use super::*;

    #[test]
    fn a_dead_engine_has_no_further_effect() {
        let script = Arc::new(Script::at(1, Verdict::CrashAfter));
        let injector = Injector::new(Arc::clone(&script) as Arc<dyn Faults>);
        let mut effects = 0;
        assert!(injector.around("one", || effects += 1).is_ok());
        assert_eq!(
            injector.around("two", || effects += 1),
            Err(Fault::Crashed("two".to_owned()))
        );
        assert_eq!(
            injector.around("three", || effects += 1),
            Err(Fault::Crashed("three".to_owned()))
        );
        assert_eq!(effects, 2);
        assert_eq!(script.fired().as_deref(), Some("two"));
        assert_eq!(script.steps(), ["one", "two"]);
    }

    #[test]
    fn a_failed_step_has_no_effect_and_the_next_goes_on() {
        let script = Arc::new(Script::at(0, Verdict::Fail).times(2));
        let injector = Injector::new(Arc::clone(&script) as Arc<dyn Faults>);
        let mut effects = 0;
        for good in [false, false, true] {
            assert_eq!(injector.around("step", || effects += 1).is_ok(), good);
        }
        assert_eq!(effects, 1);
        assert!(!script.is_dead());
    }
}
