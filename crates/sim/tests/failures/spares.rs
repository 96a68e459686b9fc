//! Networks made ahead: who gets them, and that none is left. covers R64 R65

use std::sync::Arc;

use cowslip_engine::EngineError;
use cowslip_ledger::{HandleRow, Owner, Verdict};
use cowslip_model::api::StopRequest;
use cowslip_model::{SandboxId, SandboxState};
use cowslip_sim::{Recorder, Script};
use cowslip_store::Backend;
use proptest::prelude::*;
use serde_json::json;

use crate::armed::Armed;
use crate::bench::{Bench, Life, checkpoint_request, create_request};
use crate::networks::{check_networks, connected, connected_request, is_told, rows};

/// Networks that are kept ready here.
const WARM: u32 = 2;

fn bench() -> Bench {
    Bench::new(Backend::Qcow2).with_spares(WARM)
}

/// The slots of spares, as the ledger has them.
fn spares(life: &Life) -> Vec<(u32, HandleRow)> {
    let slot_of = |row: HandleRow| match row.owner {
        Owner::Slot(slot) => Some((slot, row)),
        _ => None,
    };
    rows(life).into_iter().filter_map(slot_of).collect()
}

fn network_of(life: &Life, id: SandboxId) -> HandleRow {
    let of = |row: &HandleRow| row.owner == Owner::Machine(id);
    rows(life).into_iter().find(of).unwrap()
}

fn count(steps: &Recorder, step: &str) -> usize {
    steps.steps().iter().filter(|one| *one == step).count()
}

#[test]
fn the_next_sandbox_gets_a_network_that_is_ready() {
    let bench = bench();
    let steps = Arc::new(Recorder::default());
    let life = bench.engine(Some(steps.clone()));
    connected(&bench, &life, "one", json!({}));
    life.run(life.engine.fill_spares());
    let ready = spares(&life);
    assert_eq!(ready.len(), 2);
    check_networks(&bench, &life, "filled");

    let two = connected(&bench, &life, "two", json!({}));
    let now = network_of(&life, two);
    let (_, before) = &ready[0];
    assert_eq!((now.id, &now.spec), (before.id, &before.spec));
    assert_eq!(now.identity, before.identity);
    assert_eq!(count(&steps, "reserve netns for machine"), 1, "of \"one\"");
    assert_eq!(
        count(&steps, "host: reload rules"),
        0,
        "it was as it is to be"
    );

    is_told(&bench, &life, two);
    // Other rules than those of a spare, in the same network.
    let rules = json!({ "allow": ["192.0.2.1", "example.org"], "publish": ["8080:80"] });
    let three = connected(&bench, &life, "three", rules);
    assert_eq!(network_of(&life, three).id, ready[1].1.id);
    assert_eq!(count(&steps, "reserve netns for machine"), 1, "of \"one\"");
    assert_eq!(count(&steps, "host: reload rules"), 1);
    is_told(&bench, &life, three);

    life.run(life.engine.fill_spares());
    assert_eq!(spares(&life).len(), 2, "made behind them");
    bench.check(&life, "taken");
    bench.clean_up(&life, "taken");
}

#[test]
fn a_spare_that_nobody_took_is_the_next_ones() {
    let bench = bench();
    let life = bench.engine(None);
    connected(&bench, &life, "one", json!({}));
    life.run(life.engine.fill_spares());
    let ready = spares(&life);
    let request = || connected_request("two", json!({}));
    life.run(life.engine.create(request())).unwrap();
    life.run(life.engine.remove("two", true)).unwrap();
    // It never had a machine: its slot is free, and the network there ready.
    let two = life.run(life.engine.create(request())).unwrap();
    life.run(life.engine.start("two")).unwrap();
    assert_eq!(network_of(&life, two.id).id, ready[0].1.id);
    life.run(life.engine.fill_spares());
    assert_eq!(spares(&life).len(), 2);
    bench.clean_up(&life, "taken");
}

#[test]
fn an_engine_that_ends_releases_its_spares() {
    let bench = bench();
    let life = bench.engine(None);
    connected(&bench, &life, "one", json!({}));
    life.run(life.engine.fill_spares());
    // One whose slot a sandbox has that was never started.
    life.run(life.engine.create(create_request("two"))).unwrap();
    assert_eq!(spares(&life).len(), 2);
    // Who wants none takes none.
    let request = connected_request("three", json!({ "mode": "none" }));
    life.run(life.engine.create(request)).unwrap();
    life.run(life.engine.start("three")).unwrap();
    let ledger = &life.engine.site().ledger;
    let slots: Vec<u32> = ledger
        .read(|tx| tx.sandboxes())
        .unwrap()
        .iter()
        .map(|one| one.slot)
        .collect();
    let taken = spares(&life)
        .iter()
        .filter(|(slot, _)| slots.contains(slot))
        .count();
    assert_eq!(taken, 1, "that of \"two\"");
    life.run(life.engine.close());
    assert_eq!(rows(&life).len(), 1, "that of \"one\"");
    life.run(life.engine.fill_spares());
    assert_eq!(spares(&life), [], "none is made any more");
    assert!(bench.setup.world.host_rules().is_some(), "\"one\" runs on");
    life.run(life.engine.remove("one", true)).unwrap();
    assert_eq!(bench.setup.world.host_rules(), None);
    bench.clean_up(&life, "closed");
}

#[test]
fn a_spare_that_could_not_be_released_is_in_nobodys_way() {
    let bench = bench();
    let armed = Arc::new(Armed::default());
    let life = bench.engine(Some(armed.clone()));
    connected(&bench, &life, "one", json!({}));
    life.run(life.engine.fill_spares());
    // Its slots are given up one after the other, and the first one's network stays.
    armed.at_step("host: release netns");
    life.run(life.engine.close());
    let left = spares(&life);
    assert_eq!(left.len(), 1, "the fault missed");
    let two = connected(&bench, &life, "two", json!({}));
    assert_ne!(network_of(&life, two).spec, left[0].1.spec);
    check_networks(&bench, &life, "beside it");
    let report = life.run(life.engine.gc(false)).unwrap();
    assert_eq!((report.released.len(), report.left), (1, Vec::new()));
    assert_eq!(spares(&life), []);
    bench.clean_up(&life, "released");
}

/// The first network of all, spares, one taken under other rules, another one in its place, and an end.
fn life_of_spares(life: &Life) -> Result<(), EngineError> {
    let engine = &life.engine;
    life.run(engine.create(create_request("one")))?;
    life.run(engine.start("one"))?;
    life.run(engine.fill_spares());
    let rules = json!({ "allow": ["example.org"], "publish": ["8080:80"] });
    life.run(engine.create(connected_request("two", rules)))?;
    life.run(engine.start("two"))?;
    life.run(engine.fill_spares());
    life.run(engine.stop("two", StopRequest::default()))?;
    life.run(engine.close());
    Ok(())
}

#[test]
fn whatever_goes_wrong_with_spares_none_is_left() {
    for verdict in [Verdict::Fail, Verdict::CrashBefore, Verdict::CrashAfter] {
        let opening = {
            let recorder = Arc::new(Recorder::default());
            drop(bench().engine(Some(recorder.clone())));
            recorder.steps().len()
        };
        let case = |index| {
            let bench = bench();
            let script = Arc::new(Script::at(opening + index, verdict));
            let life = bench.engine(Some(script.clone()));
            let outcome = life_of_spares(&life);
            let fired = script.fired()?;
            let context = format!("{verdict:?} at \"{fired}\": {outcome:?}");
            let life = match script.is_dead() {
                true => {
                    drop(life);
                    bench.engine(None)
                }
                false => life,
            };
            if script.is_dead() {
                assert_eq!(spares(&life), [], "{context}");
                bench.check(&life, &context);
            }
            // Nothing that went wrong is in the way of another try.
            for sandbox in life.engine.sandboxes().unwrap() {
                let name = sandbox.name.as_str();
                let started = life.run(life.engine.start(name));
                let now = life.engine.sandbox(name).unwrap().state;
                assert_eq!(now, SandboxState::Running, "{context}: {started:?}");
            }
            bench.recover(&life);
            bench.check(&life, &context);
            bench.clean_up(&life, &context);
            Some(())
        };
        let cases = (0..).map_while(case).count();
        assert!(cases > 60, "{cases} cases of {verdict:?}");
    }
}

/// Starts and ends at once: the host's rules never go while there is a network, and nobody shares one.
#[test]
fn networks_that_come_and_go_at_once() {
    for warm in [0, WARM] {
        let bench = Bench::new(Backend::Qcow2).with_spares(warm);
        let life = bench.engine(None);
        let engine = &life.engine;
        for name in ["a", "b", "c"] {
            life.run(engine.create(create_request(name))).unwrap();
        }
        let round = async |name: &str| {
            for _ in 0..20 {
                engine.start(name).await.unwrap();
                engine.stop(name, StopRequest::default()).await.unwrap();
            }
        };
        life.run(async { tokio::join!(round("a"), round("b"), round("c")) });
        bench.check(&life, "at once");
        bench.clean_up(&life, "at once");
    }
}

#[derive(Debug, Clone)]
enum Op {
    Create(u8),
    CreateWithoutNetwork(u8),
    Start(u8),
    Stop(u8),
    Pause(u8),
    Resume(u8),
    Set(u8, u16),
    Remove(u8),
    Checkpoint(u8),
    Fork(u8),
    CrashMachine(u8),
    Fill,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..4_u8;
    prop_oneof![
        4 => name.clone().prop_map(Op::Create),
        1 => name.clone().prop_map(Op::CreateWithoutNetwork),
        6 => name.clone().prop_map(Op::Start),
        2 => name.clone().prop_map(Op::Stop),
        1 => name.clone().prop_map(Op::Pause),
        1 => name.clone().prop_map(Op::Resume),
        2 => (name.clone(), 0..2_u16).prop_map(|(one, port)| Op::Set(one, port)),
        2 => name.clone().prop_map(Op::Remove),
        1 => name.clone().prop_map(Op::Checkpoint),
        2 => name.clone().prop_map(Op::Fork),
        1 => name.prop_map(Op::CrashMachine),
        2 => Just(Op::Fill),
    ]
}

fn fault() -> impl Strategy<Value = Option<(usize, Verdict)>> {
    let verdict = prop_oneof![
        Just(Verdict::Fail),
        Just(Verdict::CrashBefore),
        Just(Verdict::CrashAfter)
    ];
    prop_oneof![3 => Just(None), 1 => (0..40_usize, verdict).prop_map(Some)]
}

/// Acts; what a verb refuses is fine here.
fn act(bench: &Bench, life: &Life, op: &Op) {
    let engine = &life.engine;
    let name = |number: &u8| format!("s{number}");
    match op {
        Op::Create(one) => drop(life.run(engine.create(create_request(&name(one))))),
        Op::CreateWithoutNetwork(one) => {
            let request = connected_request(&name(one), json!({ "mode": "none" }));
            drop(life.run(engine.create(request)));
        }
        Op::Start(one) => drop(life.run(engine.start(&name(one)))),
        Op::Stop(one) => drop(life.run(engine.stop(&name(one), StopRequest::default()))),
        Op::Pause(one) => drop(life.run(engine.pause(&name(one)))),
        Op::Resume(one) => drop(life.run(engine.resume(&name(one)))),
        Op::Set(one, port) => {
            let rules = json!({ "allow": ["example.org"], "publish": [format!("808{port}:80")] });
            let rules = serde_json::from_value(rules).unwrap();
            drop(life.run(engine.set_network(&name(one), rules)));
        }
        Op::Remove(one) => drop(life.run(engine.remove(&name(one), true))),
        Op::Checkpoint(one) => {
            let request = checkpoint_request(&name(one), "point");
            drop(life.run(engine.create_checkpoint(request)));
        }
        Op::Fork(one) => {
            let request = serde_json::from_value(json!({ "name": name(one) })).unwrap();
            drop(life.run(engine.fork("point", request)));
        }
        Op::CrashMachine(one) => {
            if let Ok(found) = engine.sandbox(&name(one)) {
                bench.setup.world.crash_machine(found.id, "it crashed");
            }
        }
        Op::Fill => life.run(engine.fill_spares()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slots_never_collide_and_no_network_leaks(
        ops in prop::collection::vec((op(), fault()), 1..32),
    ) {
        let bench = bench();
        let mut armed = Arc::new(Armed::default());
        let mut life = bench.engine(Some(armed.clone()));
        for (serial, (op, fault)) in ops.iter().enumerate() {
            let context = format!("step {serial}: {op:?} with {fault:?}");
            armed.arm(*fault);
            act(&bench, &life, op);
            let (fired, dead) = armed.disarm();
            if dead {
                drop(life);
                armed = Arc::default();
                life = bench.engine(Some(armed.clone()));
                prop_assert!(spares(&life).is_empty(), "{}: spares are left", context);
            } else if fired || matches!(op, Op::CrashMachine(_)) {
                bench.recover(&life);
            }
            bench.check(&life, &context);
        }
        bench.clean_up(&life, "at the end");
    }
}
