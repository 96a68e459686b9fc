//! Faults that a test asks for while its engine runs.

use std::sync::Mutex;

use cowslip_ledger::{Faults, Step, Verdict};

/// Makes a step go wrong that the test says while the engine runs.
#[derive(Default)]
pub(crate) struct Armed(Mutex<Arms>);

#[derive(Default)]
struct Arms {
    /// After how many more steps, and how.
    next: Option<(usize, Verdict)>,
    /// Which one fails, how often.
    step: Option<(&'static str, usize)>,
    fired: bool,
    dead: bool,
}

impl Armed {
    /// The step after `next.0` others goes wrong.
    pub(crate) fn arm(&self, next: Option<(usize, Verdict)>) {
        let mut arms = self.0.lock().unwrap();
        (arms.next, arms.fired) = (next, false);
    }

    /// Lets nothing more go wrong; whether something did, and whether the engine died of it.
    pub(crate) fn disarm(&self) -> (bool, bool) {
        let mut arms = self.0.lock().unwrap();
        arms.next = None;
        (arms.fired, arms.dead)
    }

    /// The next one of that name fails.
    pub(crate) fn at_step(&self, step: &'static str) {
        self.at_steps(step, 1);
    }

    /// The next ones of that name fail.
    pub(crate) fn at_steps(&self, step: &'static str, times: usize) {
        self.0.lock().unwrap().step = Some((step, times));
    }
}

impl Faults for Armed {
    fn verdict(&self, step: Step<'_>) -> Verdict {
        let mut arms = self.0.lock().unwrap();
        if arms.dead {
            return Verdict::CrashBefore;
        }
        if let Some((_, times)) = arms
            .step
            .as_mut()
            .filter(|(fails, times)| *fails == step && *times > 0)
        {
            *times -= 1;
            return Verdict::Fail;
        }
        match arms.next {
            None => Verdict::Proceed,
            Some((0, verdict)) => {
                (arms.next, arms.fired) = (None, true);
                arms.dead = verdict != Verdict::Fail;
                verdict
            }
            Some((left, verdict)) => {
                arms.next = Some((left - 1, verdict));
                Verdict::Proceed
            }
        }
    }
}
