//! What the same engine makes of a verb that failed: the verb once more, or `gc`, puts everything in order.

use std::sync::Arc;

use cowslip_engine::EngineError;
use cowslip_ledger::Verdict;
use cowslip_sim::Script;
use cowslip_store::Backend;

use crate::bench::{Bench, Life};
use crate::matrix::{Verb, opening_steps, usable, verbs};

/// A verb that met errors at a step and those behind it. From here on nothing goes wrong any more.
struct Failed {
    bench: Bench,
    life: Life,
    done: bool,
    context: String,
}

/// Lets a verb meet errors at step `at` and all the `times` steps from there on; none when that is past its last.
fn failed(verb: &Verb, at: usize, times: usize) -> Option<Failed> {
    let bench = Bench::new(Backend::Qcow2);
    let first = bench.engine(None);
    (verb.prepare)(&bench, &first);
    drop(first);
    let script = Arc::new(Script::at(at, Verdict::Fail).times(times));
    let life = bench.engine(Some(script.clone()));
    let done = (verb.act)(&life).is_ok();
    let fired = script.fired()?;
    script.heal();
    Some(Failed {
        context: format!("{} after ×{times} failures at \"{fired}\"", verb.name),
        bench,
        life,
        done,
    })
}

/// Each verb at each of its steps.
fn all(times: usize, then: fn(&Verb, &Failed)) {
    for verb in verbs() {
        let opening = opening_steps(&verb, Backend::Qcow2);
        let met = |step| {
            let failed = failed(&verb, opening + step, times)?;
            then(&verb, &failed);
            failed.bench.clean_up(&failed.life, &failed.context);
            Some(())
        };
        let steps = (0..).map_while(met).count();
        assert!(steps >= 3, "{}: {steps} steps", verb.name);
    }
}

/// The verb once more, without recovery in between.
fn once_more(verb: &Verb, failed: &Failed) {
    let Failed {
        bench,
        life,
        done,
        context,
    } = failed;
    if !done && (verb.act)(life).is_err() && life.engine.sandbox("one").is_ok() {
        usable(bench, life, "one", context);
        // It may have been carried out all but for its last words, and then is refused in its new state.
        if !verb.name.starts_with("resume") && !verb.name.starts_with("start") {
            match (verb.act)(life) {
                // What it removes was withdrawn; the rest of it goes with the next recovery.
                Ok(()) | Err(EngineError::NotFound { .. }) => {}
                Err(error) => panic!("{context}: {error}"),
            }
        }
    }
    bench.recover(life);
    bench.check(life, context);
}

fn tidied(verb: &Verb, failed: &Failed) {
    let Failed {
        bench,
        life,
        done,
        context,
    } = failed;
    let report = life.run(life.engine.gc(false)).unwrap();
    assert_eq!(report.left, Vec::<String>::new(), "{context}");
    bench.check(life, context);
    (verb.expect)(bench, life, *done, context);
}

#[test]
fn after_an_error_at_any_step_the_same_engine_carries_the_verb_out() {
    all(1, once_more);
}

#[test]
fn after_errors_that_clean_up_meets_too_the_same_engine_carries_the_verb_out() {
    all(3, once_more);
}

#[test]
fn after_errors_that_clean_up_meets_too_gc_puts_in_order_what_is_left() {
    all(3, tidied);
}
