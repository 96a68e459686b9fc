//! Every verb of the engine with real machines: at each of its steps an error, a death before and a death after.
//!
//! ```text
//!   this test ─► the same program again, as one engine: prepares, then takes the verb to the step ─┐
//!             ─► the next engine is the real one: nothing is lost, nothing is left ◄───────────────┘
//! ```
//!
//! A step is a change of the ledger, a call to a monitor or a call to a guest; a death is a `kill -9` of itself. Where
//! a step only fails, the same engine carries the verb out afterwards. There are some five hundred cases for each
//! monitor: `COWSLIP_MATRIX_STRIDE=1` runs them all, and without it some of them are. All of them in N runs, of which
//! each can be run again by itself: `COWSLIP_MATRIX_STRIDE=N`, and `COWSLIP_MATRIX_FROM` from 0 to N - 1;
//! `COWSLIP_MATRIX_VERB` is for one verb alone.

mod doomed;
mod parts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cowslip_e2e::{Done, Instance, Kernel, Setup};
use cowslip_model::SandboxState;

use crate::firecracker::{JAIL, instance};

/// Of the cases of all verbs every so many is run: outside of the test VM, where one takes a second, and in it. Neither
/// is a multiple of the ways to go wrong.
const STRIDE_OUTSIDE: usize = 13;
const STRIDE: usize = 40;
/// A verb has fewer steps.
const STEPS_MAX: usize = 200;

/// What there may be of the sandbox that a verb works on, after something went wrong.
struct Verb {
    name: &'static str,
    /// Where the verb was told to have come about, it is this; gone, for none.
    done: Option<SandboxState>,
    /// Otherwise it is one of these; gone is [`SandboxState::Creating`].
    allowed: &'static [SandboxState],
}

use SandboxState::{Creating as Gone, Failed, Paused, Running, Stopped};

const fn verb(
    name: &'static str,
    done: Option<SandboxState>,
    allowed: &'static [SandboxState],
) -> Verb {
    Verb {
        name,
        done,
        allowed,
    }
}

/// In the order in which a sandbox meets them. Each finds the sandbox "one", a fork of "base", but for the first.
const VERBS: [Verb; 11] = [
    verb("create", Some(Stopped), &[Gone, Stopped]),
    verb("start", Some(Running), &[Stopped, Failed, Running]),
    verb("checkpoint", Some(Running), &[Running, Failed]),
    verb("fork", Some(Running), &[Running]),
    verb("pause", Some(Paused), &[Running, Paused, Failed]),
    verb("resume", Some(Running), &[Paused, Running]),
    verb("stop", Some(Stopped), &[Running, Stopped, Failed]),
    verb("rm", None, &[Gone, Running, Stopped, Failed]),
    verb("expire-remove", None, &[Gone, Running, Stopped, Failed]),
    verb("expire-stop", Some(Stopped), &[Running, Stopped, Failed]),
    verb("expire-pause", Some(Paused), &[Running, Paused, Failed]),
];

/// What goes wrong at a step.
const WRONGS: [&str; 3] = ["fail", "die-before", "die-after"];

/// One engine that is to meet a step; gives the steps that its verb took.
fn doomed(host: &Instance, verb: &Verb, wrong: &str, at: usize) -> (Done, Vec<String>) {
    let steps = host.scratch().join("steps");
    let _ = std::fs::remove_file(&steps);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let done = host
        .call_other(std::env::current_exe().unwrap())
        .arg("--exact")
        .arg("matrix::doomed::an_engine")
        .arg("--nocapture")
        .env(doomed::VERB, verb.name)
        .env(doomed::WRONG, wrong)
        .env(doomed::AT, &at.to_string())
        .env(doomed::STEPS, &path(&steps))
        .env(doomed::STATE, &path(host.state()))
        .env(doomed::RUN, &path(host.run_dir()))
        .run();
    let taken = std::fs::read_to_string(&steps).unwrap_or_default();
    (done, taken.lines().map(str::to_owned).collect())
}

/// Checks what the next engine finds, and removes it.
fn settle(
    host: &Instance,
    verb: &Verb,
    told_done: bool,
    before: &BTreeSet<PathBuf>,
    context: &str,
) {
    host.assert_agreement();
    let names = host.sandboxes();
    let one = names.iter().any(|name| name == "one");
    let state = if one { host.sandbox("one").state } else { Gone };
    assert!(
        verb.allowed.contains(&state) || Some(state) == verb.done,
        "{context}: it is {state}: {:?}",
        one.then(|| host.sandbox("one").reason)
    );
    if told_done {
        assert_eq!(
            state,
            verb.done.unwrap_or(Gone),
            "{context}: it was told to be done"
        );
    }
    let forks = names.iter().filter(|name| name.starts_with("two")).count();
    // Both, or none; and the caller who was told that they are there has both.
    assert!(
        forks == 2 || (forks == 0 && !(told_done && verb.name == "fork")),
        "{context}: {names:?}"
    );
    for name in &names {
        alive(host, name, verb, context);
    }
    let points = crate::firecracker_failures::checkpoints(host);
    let point = points.iter().any(|point| point.name.as_str() == "point");
    assert!(
        !told_done || verb.name != "checkpoint" || point,
        "{context}: no checkpoint"
    );
    if point {
        let _ = host.say("fork point --name of-point").ok();
        assert_eq!(
            all(host, "of-point"),
            "kept\nin-memory",
            "{context}: of the checkpoint"
        );
        let _ = host.say("rm --force of-point").ok();
        let _ = host.say("checkpoint rm point").ok();
    }
    clear(host, before);
}

/// Removes what verbs made.
fn clear(host: &Instance, before: &BTreeSet<PathBuf>) {
    for name in host.sandboxes() {
        let _ = host.call(["rm", "--force", &name]).ok();
    }
    for point in crate::firecracker_failures::checkpoints(host) {
        if point.name.as_str() != "base" {
            let _ = host.call(["checkpoint", "rm", point.name.as_str()]).ok();
        }
    }
    crate::firecracker_failures::assert_nothing_but(host, before);
}

/// The sandbox runs, or does when it is asked to; what it had on its disk is there, and what it had in memory unless it
/// had to be started.
fn alive(host: &Instance, name: &str, verb: &Verb, context: &str) {
    let found = host.sandbox(name);
    assert_eq!(found.transition, None, "{context}: {name}");
    let started = match found.state {
        Running => verb.name == "start",
        Paused => {
            let _ = host.call(["resume", name]).ok();
            false
        }
        Stopped | Failed => {
            let _ = host.call(["start", name]).ok();
            true
        }
        Gone => panic!("{context}: {name} is half made"),
    };
    let expected = match (verb.name, started) {
        ("create", _) => "",
        (_, true) => "kept",
        (_, false) => "kept\nin-memory",
    };
    assert_eq!(all(host, name), expected, "{context}: {name}");
}

fn all(host: &Instance, name: &str) -> String {
    host.sh(name, "cat /root/f /run/g 2>/dev/null; true").ok()
}

/// What a verb needs: a checkpoint of a sandbox that has something on its disk and in its memory.
fn ready(host: &Instance) -> BTreeSet<PathBuf> {
    let _ = host.say("run -d --name first --memory 128M box").ok();
    let _ = host
        .sh("first", "echo kept >/root/f; echo in-memory >/run/g; sync")
        .ok();
    let _ = host.say("checkpoint create first --name base").ok();
    let _ = host.say("rm --force first").ok();
    // The whole image of it is made with the first fork, and kept.
    let _ = host.say("fork base --name warm").ok();
    let _ = host.say("rm --force warm").ok();
    let before = host.files();
    host.kill_engine();
    before
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

fn every_step(host: &Instance, stride: usize) {
    let before = ready(host);
    let stride = number("COWSLIP_MATRIX_STRIDE").unwrap_or(stride).max(1);
    let from = number("COWSLIP_MATRIX_FROM").unwrap_or(0) % stride;
    let only = std::env::var("COWSLIP_MATRIX_VERB").ok();
    let (mut index, mut cases, mut not_met) = (0, 0, 0);
    for verb in &VERBS {
        if only.as_deref().is_some_and(|only| only != verb.name) {
            continue;
        }
        let (done, steps) = doomed(host, verb, "fail", usize::MAX);
        assert_eq!(done.code, 0, "{} without anything wrong: {done}", verb.name);
        assert!(
            (3..STEPS_MAX).contains(&steps.len()),
            "{}: {steps:?}",
            verb.name
        );
        if stride == 1 {
            settle(host, verb, true, &before, verb.name);
        } else {
            // It was only to tell how many steps there are.
            clear(host, &before);
        }
        host.kill_engine();
        for (at, wrong) in (0..steps.len()).flat_map(|at| WRONGS.map(|wrong| (at, wrong))) {
            index += 1;
            if index % stride != from {
                continue;
            }
            let begun = Instant::now();
            let (done, taken) = doomed(host, verb, wrong, at);
            // What else is at work may take a step fewer this time.
            let Some(step) = taken.get(at) else {
                not_met += 1;
                eprintln!("matrix: {} has no step {at} this time", verb.name);
                settle(host, verb, true, &before, verb.name);
                host.kill_engine();
                continue;
            };
            let context = format!("{} at step {at}, {wrong} \"{step}\"", verb.name);
            let as_told = match wrong {
                "fail" => matches!(done.code, 0 | doomed::FAILED),
                _ => done.code == -9,
            };
            assert!(as_told, "{context}: {done}");
            // An engine whose verb failed has carried it out since.
            settle(host, verb, done.code != -9, &before, &context);
            host.kill_engine();
            cases += 1;
            eprintln!("matrix: {context}: {:.1} s", begun.elapsed().as_secs_f32());
        }
    }
    assert!(cases > 0, "no case was run");
    eprintln!("matrix: {cases} cases, {not_met} more did not come to their step");
    assert!(
        not_met * 10 <= cases,
        "most of the verbs' steps are to be met"
    );
}

#[test]
fn an_error_or_a_death_at_any_step_in_firecracker() {
    // covers R8 R13 R18 R22 R26 R30 R31 R32 R35 R46
    if let Some(host) = instance(JAIL) {
        every_step(&host, STRIDE);
    }
}

#[test]
fn an_error_or_a_death_at_any_step_in_qemu() {
    // covers R8 R13 R18 R22 R26 R30 R31 R32 R35 R46
    let in_the_vm = std::env::var_os("COWSLIP_IN_TEST_VM").is_some();
    if in_the_vm && number("COWSLIP_MATRIX_STRIDE").is_none() {
        eprintln!("SKIPPED: it runs outside as well, on another backend and much faster");
        return;
    }
    let setup = Setup {
        machine: "vmm = \"qemu\"".to_owned(),
        ..Setup::default()
    };
    every_step(&Instance::ready(setup, Kernel::Guest), STRIDE_OUTSIDE);
}
