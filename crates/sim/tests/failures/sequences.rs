//! Random sequences of verbs with random failures and deaths among them, and reboots.

use std::collections::BTreeMap;
use std::sync::Arc;

use cowslip_ledger::Verdict;
use cowslip_model::SandboxState;
use cowslip_model::api::StopRequest;
use cowslip_sim::Script;
use cowslip_store::Backend;
use proptest::prelude::*;

use crate::bench::{Bench, Life, checkpoint_request, create_request, disk};

#[derive(Debug, Clone)]
enum Op {
    Create(u8),
    Start(u8),
    Write(u8),
    Checkpoint(u8, u8),
    Fork(u8, u8),
    Pause(u8),
    Resume(u8),
    Stop(u8),
    Remove(u8),
    RemoveCheckpoint(u8),
    CrashMachine(u8),
    Restart,
    Reboot,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..3_u8;
    prop_oneof![
        2 => name.clone().prop_map(Op::Create),
        3 => name.clone().prop_map(Op::Start),
        4 => name.clone().prop_map(Op::Write),
        3 => (name.clone(), 0..2_u8).prop_map(|(one, point)| Op::Checkpoint(one, point)),
        3 => (0..2_u8, name.clone()).prop_map(|(point, one)| Op::Fork(point, one)),
        2 => name.clone().prop_map(Op::Pause),
        2 => name.clone().prop_map(Op::Resume),
        1 => name.clone().prop_map(Op::Stop),
        1 => name.clone().prop_map(Op::Remove),
        1 => (0..2_u8).prop_map(Op::RemoveCheckpoint),
        1 => name.prop_map(Op::CrashMachine),
        1 => Just(Op::Restart),
        1 => Just(Op::Reboot),
    ]
}

fn fault() -> impl Strategy<Value = Option<(usize, Verdict)>> {
    let verdict = prop_oneof![
        Just(Verdict::Fail),
        Just(Verdict::CrashBefore),
        Just(Verdict::CrashAfter)
    ];
    prop_oneof![2 => Just(None), 1 => (0..40_usize, verdict).prop_map(Some)]
}

fn sandbox(number: u8) -> String {
    format!("s{number}")
}

fn point(number: u8) -> String {
    format!("p{number}")
}

/// Acts; what a verb refuses is fine here.
fn act(
    bench: &Bench,
    life: &Life,
    op: &Op,
    serial: usize,
    written: &mut BTreeMap<String, Vec<String>>,
) {
    let engine = &life.engine;
    match op {
        Op::Create(one) => drop(life.run(engine.create(create_request(&sandbox(*one))))),
        Op::Start(one) => drop(life.run(engine.start(&sandbox(*one)))),
        Op::Write(one) => {
            let Ok(found) = engine.sandbox(&sandbox(*one)) else {
                return;
            };
            let line = format!("line {serial}");
            if bench.setup.world.guest_write(found.id, &line).is_ok() {
                written.entry(found.id.to_string()).or_default().push(line);
            }
        }
        Op::Checkpoint(one, at) => {
            drop(
                life.run(engine.create_checkpoint(checkpoint_request(&sandbox(*one), &point(*at)))),
            );
        }
        Op::Fork(at, one) => {
            let request =
                serde_json::from_value(serde_json::json!({ "name": sandbox(*one) })).unwrap();
            drop(life.run(engine.fork(&point(*at), request)));
        }
        Op::Pause(one) => drop(life.run(engine.pause(&sandbox(*one)))),
        Op::Resume(one) => drop(life.run(engine.resume(&sandbox(*one)))),
        Op::Stop(one) => drop(life.run(engine.stop(&sandbox(*one), StopRequest::default()))),
        Op::Remove(one) => drop(life.run(engine.remove(&sandbox(*one), true))),
        Op::RemoveCheckpoint(at) => drop(life.run(engine.remove_checkpoint(&point(*at), false))),
        Op::CrashMachine(one) => {
            if let Ok(found) = engine.sandbox(&sandbox(*one)) {
                bench.setup.world.crash_machine(found.id, "it crashed");
            }
        }
        Op::Restart | Op::Reboot => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_nothing_leaks_and_nothing_is_lost(
        ops in prop::collection::vec((op(), fault()), 1..24),
        copy in any::<bool>(),
    ) {
        let bench = Bench::new(if copy { Backend::Copy } else { Backend::Qcow2 });
        let mut written: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (serial, (op, fault)) in ops.iter().enumerate() {
            let context = format!("step {serial}: {op:?} with {fault:?}");
            if matches!(op, Op::Reboot) {
                bench.setup.world.reboot(bench.setup.layout.run());
            }
            let (index, verdict) = fault.unwrap_or((usize::MAX, Verdict::Proceed));
            let script = Arc::new(Script::at(index, verdict));
            let life = bench.engine(Some(script));
            act(&bench, &life, op, serial, &mut written);
            drop(life);
            let life = bench.engine(None);
            bench.check(&life, &context);
            // What a sandbox wrote while it ran is there whenever it runs.
            for found in life.engine.sandboxes().unwrap() {
                if found.state != SandboxState::Running {
                    continue;
                }
                let lines = disk(&bench, found.id);
                for line in written.get(&found.id.to_string()).into_iter().flatten() {
                    prop_assert!(lines.contains(line), "{}: {} lost \"{}\"", context, found.name, line);
                }
            }
        }
        let life = bench.engine(None);
        bench.clean_up(&life, "at the end");
    }
}
