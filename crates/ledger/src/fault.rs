//! Fault points. Every durable write and, on the simulated host, every host and monitor operation
//! is a named step; tests make a step fail, or make the engine "die" before or after it.
//!
//! Production code runs with no injector at all: one branch on an empty `Option`.

use std::sync::Arc;

/// The name of one step, for messages: the operation and its object.
pub type Step<'a> = &'a str;

/// What an injector does at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// The step fails without having had an effect.
    Fail,
    /// The engine is dead: the step has no effect and neither has anything after it.
    CrashBefore,
    /// The step takes effect, and then the engine is dead.
    CrashAfter,
}

/// Decides the fate of each step.
pub trait Faults: Send + Sync {
    /// Called once as a step begins.
    fn verdict(&self, step: Step<'_>) -> Verdict;

    /// Called once a step has had its effect, or failed by itself.
    fn done(&self, _step: Step<'_>) {}
}

/// An injected failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The step failed.
    #[error("injected failure at \"{0}\"")]
    Failed(String),
    /// The engine counts as dead.
    #[error("the engine died at \"{0}\"")]
    Crashed(String),
}

/// An injector or none; cheap to clone.
#[derive(Clone, Default)]
pub struct Injector(Option<Arc<dyn Faults>>);

impl Injector {
    /// An injector that asks `faults` at each step.
    #[must_use]
    pub fn new(faults: Arc<dyn Faults>) -> Self {
        Self(Some(faults))
    }

    /// Runs `effect` as the step `step`.
    ///
    /// # Errors
    /// The injected [`Fault`], whether or not the effect took place.
    pub fn around<T>(&self, step: Step<'_>, effect: impl FnOnce() -> T) -> Result<T, Fault> {
        let Some(faults) = &self.0 else {
            return Ok(effect());
        };
        let survives = begin(&**faults, step)?;
        let result = effect();
        end(&**faults, step, survives).map(|()| result)
    }

    /// Runs `effect` to its end as the step `step`.
    ///
    /// # Errors
    /// As for [`Injector::around`].
    pub async fn around_async<T>(
        &self,
        step: Step<'_>,
        effect: impl Future<Output = T> + Send,
    ) -> Result<T, Fault> {
        let Some(faults) = &self.0 else {
            return Ok(effect.await);
        };
        let survives = begin(&**faults, step)?;
        let result = effect.await;
        end(&**faults, step, survives).map(|()| result)
    }
}

/// Asks for the verdict on a step; gives whether the engine lives on after its effect.
fn begin(faults: &dyn Faults, step: Step<'_>) -> Result<bool, Fault> {
    match faults.verdict(step) {
        Verdict::Proceed => Ok(true),
        Verdict::CrashAfter => Ok(false),
        Verdict::Fail => Err(Fault::Failed(step.to_owned())),
        Verdict::CrashBefore => Err(Fault::Crashed(step.to_owned())),
    }
}

/// Tells of a step's effect; the fault where the engine does not live on.
fn end(faults: &dyn Faults, step: Step<'_>, survives: bool) -> Result<(), Fault> {
    faults.done(step);
    match survives {
        true => Ok(()),
        false => Err(Fault::Crashed(step.to_owned())),
    }
}

impl std::fmt::Debug for Injector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Injector(on)"
        } else {
            "Injector(off)"
        })
    }
}
