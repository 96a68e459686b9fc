//! One verb at a time: every step × {error, error twice, death before, death after}.

use std::sync::Arc;

use cowslip_engine::EngineError;
use cowslip_ledger::Verdict;
use cowslip_model::api::{ForkRequest, StopRequest};
use cowslip_model::{SandboxState, Timestamp};
use cowslip_sim::Script;
use cowslip_store::Backend;

use crate::bench::{
    Bench, Life, checkpoint_request, create_request, disk, flatten_request, running,
};

/// A verb under test: what is there before it, the verb, and what it may have come to.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    pub(crate) prepare: fn(&Bench, &Life),
    pub(crate) act: fn(&Life) -> Result<(), EngineError>,
    /// Checked after recovery; `done` says whether the verb reported success.
    pub(crate) expect: fn(&Bench, &Life, done: bool, context: &str),
}

fn nothing(_: &Bench, _: &Life) {}

fn one_running(bench: &Bench, life: &Life) {
    running(bench, life, "one");
}

fn one_stopped(bench: &Bench, life: &Life) {
    running(bench, life, "one");
    life.run(life.engine.stop("one", StopRequest::default()))
        .unwrap();
}

fn one_paused(bench: &Bench, life: &Life) {
    running(bench, life, "one");
    life.run(life.engine.pause("one")).unwrap();
}

fn one_checkpoint(bench: &Bench, life: &Life) {
    let one = running(bench, life, "one");
    life.run(
        life.engine
            .create_checkpoint(checkpoint_request("one", "point")),
    )
    .unwrap();
    bench.setup.world.guest_write(one.id, "after").unwrap();
}

/// A sandbox whose time is long, and what is to become of it then.
fn with_ttl(bench: &Bench, life: &Life, on_expiry: &str) {
    let request = serde_json::json!({
        "template": "debian", "name": "one", "ttl": 3600, "on_expiry": on_expiry,
    });
    life.run(life.engine.create(serde_json::from_value(request).unwrap()))
        .unwrap();
    let one = life.run(life.engine.start("one")).unwrap();
    bench.setup.world.guest_write(one.id, "one").unwrap();
    bench.setup.world.guest_count(one.id).unwrap();
}

/// Its time is over.
fn expire(life: &Life) -> Result<(), EngineError> {
    let Ok(one) = life.engine.sandbox("one") else {
        return Ok(());
    };
    let later = Timestamp::now().after(std::time::Duration::from_secs(7200));
    life.run(life.engine.expire(one.id, later))
}

/// A checkpoint whose memory stands on that of another, which is gone.
fn one_checkpoint_on_another(bench: &Bench, life: &Life) {
    let one = running(bench, life, "one");
    for name in ["below", "point"] {
        let request = checkpoint_request("one", name);
        let point = life.run(life.engine.create_checkpoint(request)).unwrap();
        assert_eq!(point.memory_chain, u64::from(name == "point"));
    }
    life.run(life.engine.remove_checkpoint("below", false))
        .unwrap();
    bench.setup.world.guest_write(one.id, "after").unwrap();
}

fn fork(count: u32) -> ForkRequest {
    serde_json::from_value(serde_json::json!({ "count": count, "name": "fork" })).unwrap()
}

/// Both forks of "point" are sound where they are, and the checkpoint is as good as before.
pub(crate) fn forks_or_none(bench: &Bench, life: &Life, done: bool, context: &str) {
    one_is(bench, life, &[SandboxState::Running], context);
    let names = ["fork-1", "fork-2"];
    let found = names.map(|name| life.engine.sandbox(name).is_ok());
    assert_eq!(found[0], found[1], "{context}: one fork without the other");
    for name in names {
        let found = life.engine.sandbox(name);
        assert!(found.is_ok() || !done, "{context}: {name} is gone");
        let Ok(found) = found else { continue };
        usable(bench, life, name, context);
        let disk = disk(bench, found.id);
        assert_eq!(disk.first().map(String::as_str), Some("one"), "{context}");
        assert!(!disk.contains(&"after".to_owned()), "{context}");
    }
    let request = serde_json::from_str("{}").unwrap();
    let again = life.run(life.engine.fork("point", request)).unwrap();
    assert_eq!(disk(bench, again[0].id), ["one"], "{context}");
}

/// The sandbox "one" is in one of these states, and what it wrote is there.
pub(crate) fn one_is(bench: &Bench, life: &Life, allowed: &[SandboxState], context: &str) {
    let one = life
        .engine
        .sandbox("one")
        .unwrap_or_else(|_| panic!("{context}: \"one\" is lost"));
    assert!(
        allowed.contains(&one.state),
        "{context}: \"one\" is {} ({:?})",
        one.state,
        one.reason
    );
    usable(bench, life, "one", context);
    assert_eq!(
        disk(bench, one.id).first().map(String::as_str),
        Some("one"),
        "{context}: its disk"
    );
}

/// From whatever state, the user gets the sandbox to run again and to write.
pub(crate) fn usable(bench: &Bench, life: &Life, name: &str, context: &str) {
    let sandbox = life.engine.sandbox(name).unwrap();
    let revived = match sandbox.state {
        SandboxState::Running => Ok(sandbox),
        SandboxState::Paused => {
            let resumed = life.run(life.engine.resume(name));
            if let Ok(resumed) = &resumed {
                let guest = bench.setup.world.guest(resumed.id).unwrap();
                assert_eq!(
                    guest.counter, 1,
                    "{context}: the memory of \"{name}\" is lost"
                );
            }
            resumed
        }
        _ => life.run(life.engine.start(name)),
    };
    let revived =
        revived.unwrap_or_else(|error| panic!("{context}: \"{name}\" cannot be used: {error}"));
    bench
        .setup
        .world
        .guest_write(revived.id, "still writing")
        .unwrap();
    // What its memory stands on is known, or all of it is saved.
    let request = checkpoint_request(name, &format!("last-{name}"));
    let last = life.run(life.engine.create_checkpoint(request));
    last.unwrap_or_else(|error| panic!("{context}: checkpoint \"{name}\": {error}"));
}

fn flatten(life: &Life, source: &str) -> Result<(), EngineError> {
    let request = flatten_request(source, "flat");
    life.run(life.engine.flatten(request)).map(drop)
}

/// The template "flat", where there is one, is whole: it has what "one" wrote, and runs.
fn flat_is_whole(bench: &Bench, life: &Life, done: bool, context: &str) {
    let found = life.engine.template("flat");
    assert!(found.is_ok() || !done, "{context}: reported and gone");
    let Ok(found) = found else { return };
    assert_eq!(found.layers, 0, "{context}");
    let request = serde_json::json!({ "template": "flat", "name": "new" });
    life.run(life.engine.create(serde_json::from_value(request).unwrap()))
        .unwrap();
    let new = life.run(life.engine.start("new")).unwrap();
    assert_eq!(
        disk(bench, new.id),
        ["one"],
        "{context}: the template's disk"
    );
}

/// All verbs.
pub(crate) fn verbs() -> Vec<Verb> {
    let mut all = verbs_of_sandboxes();
    all.extend(crate::networks::verbs());
    all
}

fn verbs_of_sandboxes() -> Vec<Verb> {
    use SandboxState::{Failed, Paused, Running, Stopped};
    vec![
        Verb {
            name: "create",
            prepare: nothing,
            act: |life| {
                life.run(life.engine.create(create_request("new")))
                    .map(drop)
            },
            expect: |_, life, done, context| {
                let found = life.engine.sandbox("new").is_ok();
                assert!(found || !done, "{context}: reported and gone");
            },
        },
        Verb {
            name: "start",
            prepare: one_stopped,
            act: |life| life.run(life.engine.start("one")).map(drop),
            expect: |bench, life, _, context| {
                one_is(bench, life, &[Running, Stopped, Failed], context)
            },
        },
        Verb {
            name: "checkpoint",
            prepare: one_running,
            act: |life| {
                life.run(
                    life.engine
                        .create_checkpoint(checkpoint_request("one", "point")),
                )
                .map(drop)
            },
            expect: |bench, life, done, context| {
                let counter = life
                    .engine
                    .sandbox("one")
                    .ok()
                    .and_then(|one| bench.setup.world.guest(one.id))
                    .map(|guest| guest.counter);
                one_is(bench, life, &[Running, Failed], context);
                assert!(
                    counter.is_none_or(|counter| counter == 1),
                    "{context}: it was started anew"
                );
                let point = life.engine.checkpoint("point").is_ok();
                assert!(point || !done, "{context}: reported and gone");
                if point {
                    let forks = life.run(life.engine.fork("point", fork(1))).unwrap();
                    assert_eq!(
                        disk(bench, forks[0].id),
                        ["one"],
                        "{context}: the fork's disk"
                    );
                }
            },
        },
        Verb {
            name: "checkpoint on another",
            prepare: one_checkpoint,
            act: |life| {
                let request = checkpoint_request("one", "second");
                life.run(life.engine.create_checkpoint(request)).map(drop)
            },
            expect: |bench, life, done, context| {
                one_is(bench, life, &[Running, Failed], context);
                for (name, expected) in [("second", vec!["one", "after"]), ("point", vec!["one"])] {
                    let found = life.engine.checkpoint(name);
                    assert!(found.is_ok() || !done, "{context}: {name} is gone");
                    if found.is_err() {
                        continue;
                    }
                    let request = serde_json::from_str("{}").unwrap();
                    let forks = life.run(life.engine.fork(name, request)).unwrap();
                    assert_eq!(disk(bench, forks[0].id), expected, "{context}: of {name}");
                }
            },
        },
        Verb {
            name: "fork one that stands on another",
            prepare: one_checkpoint_on_another,
            act: |life| life.run(life.engine.fork("point", fork(2))).map(drop),
            expect: forks_or_none,
        },
        Verb {
            name: "fork",
            prepare: one_checkpoint,
            act: |life| life.run(life.engine.fork("point", fork(2))).map(drop),
            expect: forks_or_none,
        },
        Verb {
            name: "pause",
            // What its memory stands on is known, and no longer if it goes on.
            prepare: one_checkpoint,
            act: |life| life.run(life.engine.pause("one")).map(drop),
            expect: |bench, life, _, context| {
                one_is(bench, life, &[Running, Paused, Failed], context)
            },
        },
        Verb {
            name: "expire: remove",
            prepare: |bench, life| with_ttl(bench, life, "remove"),
            act: expire,
            expect: |_, life, done, context| {
                assert!(
                    !done || life.engine.sandbox("one").is_err(),
                    "{context}: still there"
                );
            },
        },
        Verb {
            name: "expire: pause",
            prepare: |bench, life| with_ttl(bench, life, "pause"),
            act: expire,
            expect: |bench, life, done, context| {
                let one = life.engine.sandbox("one").unwrap();
                assert!(
                    !done || one.state == Paused && one.expires_at.is_none(),
                    "{context}"
                );
                one_is(bench, life, &[Running, Paused, Failed], context);
                let one = life.engine.sandbox("one").unwrap();
                assert!(one.expires_at.is_some(), "{context}: its time begins anew");
            },
        },
        Verb {
            name: "expire: stop",
            prepare: |bench, life| with_ttl(bench, life, "stop"),
            act: expire,
            expect: |bench, life, done, context| {
                let one = life.engine.sandbox("one").unwrap();
                assert!(!done || one.state == Stopped, "{context}");
                one_is(bench, life, &[Running, Stopped, Failed], context);
            },
        },
        Verb {
            name: "resume",
            prepare: one_paused,
            act: |life| life.run(life.engine.resume("one")).map(drop),
            expect: |bench, life, _, context| one_is(bench, life, &[Running, Paused], context),
        },
        Verb {
            name: "stop",
            prepare: one_running,
            act: |life| {
                life.run(life.engine.stop("one", StopRequest::default()))
                    .map(drop)
            },
            expect: |bench, life, _, context| {
                one_is(bench, life, &[Stopped, Failed, Running], context)
            },
        },
        Verb {
            name: "stop a paused one",
            prepare: one_paused,
            act: |life| {
                life.run(life.engine.stop("one", StopRequest::default()))
                    .map(drop)
            },
            expect: |bench, life, _, context| {
                one_is(bench, life, &[Stopped, Failed, Paused], context)
            },
        },
        Verb {
            name: "remove",
            prepare: one_running,
            act: |life| life.run(life.engine.remove("one", true)),
            expect: |_, life, done, context| {
                assert!(
                    !done || life.engine.sandbox("one").is_err(),
                    "{context}: still there"
                );
            },
        },
        Verb {
            name: "flatten a running one",
            prepare: one_running,
            act: |life| flatten(life, "one"),
            expect: |bench, life, done, context| {
                flat_is_whole(bench, life, done, context);
                let one = life.engine.sandbox("one").unwrap();
                let guest = bench.setup.world.guest(one.id);
                assert!(
                    guest.is_none_or(|guest| guest.counter == 1),
                    "{context}: it was started anew"
                );
                one_is(bench, life, &[Running, Failed], context);
            },
        },
        Verb {
            name: "flatten a stopped one",
            prepare: one_stopped,
            act: |life| flatten(life, "one"),
            expect: |bench, life, done, context| {
                flat_is_whole(bench, life, done, context);
                one_is(bench, life, &[Stopped], context);
            },
        },
        Verb {
            name: "flatten a checkpoint",
            prepare: one_checkpoint,
            act: |life| flatten(life, "point"),
            expect: |bench, life, done, context| {
                flat_is_whole(bench, life, done, context);
                one_is(bench, life, &[Running], context);
                let forks = life.run(life.engine.fork("point", fork(1))).unwrap();
                assert_eq!(disk(bench, forks[0].id), ["one"], "{context}");
            },
        },
        Verb {
            name: "remove a checkpoint",
            prepare: one_checkpoint,
            act: |life| life.run(life.engine.remove_checkpoint("point", false)),
            expect: |bench, life, done, context| {
                one_is(bench, life, &[Running], context);
                assert!(
                    !done || life.engine.checkpoint("point").is_err(),
                    "{context}: still there"
                );
            },
        },
    ]
}

/// Steps that an engine takes to open over what a verb needs: the faults begin after them.
pub(crate) fn opening_steps(verb: &Verb, backend: Backend) -> usize {
    let bench = Bench::new(backend);
    let first = bench.engine(None);
    (verb.prepare)(&bench, &first);
    drop(first);
    let recorder = Arc::new(Script::at(usize::MAX, Verdict::Proceed));
    drop(bench.engine(Some(recorder.clone())));
    recorder.steps().len()
}

/// A way of going wrong: at which step (counted from the opening of the engine), how, how often.
#[derive(Clone, Copy)]
struct Wrong {
    at: usize,
    verdict: Verdict,
    times: usize,
}

/// One case; false when the step is past the verb's last.
fn case(verb: &Verb, backend: Backend, wrong: Wrong) -> bool {
    let Wrong { at, verdict, times } = wrong;
    let bench = Bench::new(backend);
    let first = bench.engine(None);
    (verb.prepare)(&bench, &first);
    drop(first);
    let script = Arc::new(Script::at(at, verdict).times(times));
    let life = bench.engine(Some(script.clone()));
    let outcome = (verb.act)(&life);
    let Some(fired) = script.fired() else {
        return false;
    };
    let context = format!(
        "{} on {}, {verdict:?} ×{times} at \"{fired}\"",
        verb.name,
        backend.as_str()
    );
    let done = outcome.is_ok();
    let life = if script.is_dead() {
        drop(life);
        bench.engine(None)
    } else {
        // Failures that clean-up met too are settled by the next engine at the latest.
        if times > 1 {
            drop(life);
            bench.engine(None)
        } else {
            life
        }
    };
    if !done {
        bench.recover(&life);
    }
    bench.check(&life, &context);
    (verb.expect)(&bench, &life, done, &context);
    bench.check(&life, &context);
    bench.clean_up(&life, &context);
    true
}

fn all_cases(backend: Backend, verdict: Verdict, times: usize) {
    let mut cases = 0;
    for verb in verbs() {
        let opening = opening_steps(&verb, backend);
        let mut step = 0;
        while case(
            &verb,
            backend,
            Wrong {
                at: opening + step,
                verdict,
                times,
            },
        ) {
            step += 1;
        }
        assert!(
            step >= 3,
            "{} has {step} steps: the harness saw nothing",
            verb.name
        );
        cases += step;
    }
    assert!(cases > 100, "{cases} cases");
    println!(
        "{cases} cases of {verdict:?} ×{times} on {}",
        backend.as_str()
    );
}

#[test]
fn an_error_at_any_step_on_qcow2() {
    all_cases(Backend::Qcow2, Verdict::Fail, 1);
}

#[test]
fn an_error_that_clean_up_meets_too_on_qcow2() {
    all_cases(Backend::Qcow2, Verdict::Fail, 3);
}

#[test]
fn a_death_before_any_step_on_qcow2() {
    all_cases(Backend::Qcow2, Verdict::CrashBefore, 1);
}

#[test]
fn a_death_after_any_step_on_qcow2() {
    all_cases(Backend::Qcow2, Verdict::CrashAfter, 1);
}

#[test]
fn an_error_at_any_step_on_copy() {
    all_cases(Backend::Copy, Verdict::Fail, 1);
}

#[test]
fn a_death_before_any_step_on_copy() {
    all_cases(Backend::Copy, Verdict::CrashBefore, 1);
}

#[test]
fn a_death_after_any_step_on_copy() {
    all_cases(Backend::Copy, Verdict::CrashAfter, 1);
}
