//! Reservations and held handles, and what an engine's death leaves of them.

use std::sync::{Arc, Mutex};

use cowslip_model::{HandleId, SandboxId};

use super::{Bench, Thing, ThingSpec};
use crate::fault::{Fault, Faults, Injector, Verdict};
use crate::{HandleState, LedgerError, Owner, Synchronous};

const OWNER: Owner = Owner::Machine(SandboxId::from_bits(1));

#[test]
fn the_intent_is_durable_before_the_object_can_be_made() {
    // covers R47
    let bench = Bench::new();
    let slot = bench
        .ledger
        .reserve::<Thing>(OWNER, ThingSpec::new("/a \"b\"\n\\"), &[])
        .unwrap();
    let row = bench
        .reopened("boot-2")
        .read(|tx| tx.handle(slot.id()))
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.state, row.kind.as_str(), row.owner),
        (HandleState::Reserved, "thing", OWNER)
    );
    assert_eq!(row.boot_id, "boot-1", "the boot it was reserved in");
    assert_eq!(row.identity, None);
    assert_eq!(row.spec::<Thing>().unwrap(), ThingSpec::new("/a \"b\"\n\\"));

    let id = slot.acquired(77).unwrap().settle();
    let row = bench
        .reopened("boot-1")
        .read(|tx| tx.handle(id))
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.state, row.identity::<Thing>().unwrap()),
        (HandleState::Held, Some(77))
    );
}

#[test]
fn handles_keep_the_order_of_their_making_and_what_they_need() {
    let bench = Bench::new();
    let mut made: Vec<HandleId> = Vec::new();
    for number in 0..20 {
        let spec = ThingSpec::new(&format!("/{number}"));
        let below: Vec<_> = made.last().copied().into_iter().collect();
        let slot = bench.ledger.reserve::<Thing>(OWNER, spec, &below).unwrap();
        made.push(slot.acquired(number).unwrap().settle());
    }
    let other = Owner::Sandbox(SandboxId::from_bits(1));
    drop(
        bench
            .ledger
            .reserve::<Thing>(other, ThingSpec::new("/other"), &[])
            .unwrap(),
    );
    let rows = bench.ledger.read(|tx| tx.handles_of(OWNER)).unwrap();
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), made);
    assert!(
        rows.windows(2)
            .all(|pair| pair[0].seq < pair[1].seq && pair[1].depends_on == [pair[0].id])
    );
    assert_eq!(bench.ledger.read(|tx| tx.handles()).unwrap().len(), 21);
}

#[test]
fn what_is_dropped_unsettled_is_told_of_and_keeps_its_row() {
    let bench = Bench::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    bench.ledger.on_orphan({
        let told = Arc::clone(&told);
        move |id| told.lock().unwrap().push(id)
    });
    let reserve = |path: &str| {
        bench
            .ledger
            .reserve::<Thing>(OWNER, ThingSpec::new(path), &[])
            .unwrap()
    };
    let reservation = reserve("/a");
    let unused = reservation.id();
    drop(reservation);
    let held = reserve("/b").acquired(1).unwrap();
    let unsettled = held.id();
    drop(held);
    reserve("/c").acquired(2).unwrap().settle();
    assert_eq!(*told.lock().unwrap(), [unused, unsettled]);
    assert_eq!(bench.ledger.read(|tx| tx.handles()).unwrap().len(), 3);
}

#[test]
fn a_row_is_forgotten_once_and_again() {
    let bench = Bench::new();
    let id = bench
        .ledger
        .reserve::<Thing>(OWNER, ThingSpec::new("/a"), &[])
        .unwrap()
        .acquired(1)
        .unwrap()
        .settle();
    let row = bench.ledger.read(|tx| tx.handle(id)).unwrap().unwrap();
    for _ in 0..2 {
        bench.ledger.forget(&row).unwrap();
        assert!(bench.ledger.read(|tx| tx.handles()).unwrap().is_empty());
    }
    // What came to be after its row was given up has no record to be written to.
    let slot = bench
        .ledger
        .reserve::<Thing>(OWNER, ThingSpec::new("/b"), &[])
        .unwrap();
    let row = bench
        .ledger
        .read(|tx| tx.handle(slot.id()))
        .unwrap()
        .unwrap();
    bench.ledger.forget(&row).unwrap();
    assert!(matches!(
        slot.acquired(2).err(),
        Some(LedgerError::Missing(_))
    ));
}

#[test]
fn a_row_of_another_version_is_an_error_that_names_it() {
    let bench = Bench::new();
    let slot = bench
        .ledger
        .reserve::<Thing>(OWNER, ThingSpec::new("/a"), &[])
        .unwrap();
    let mut row = bench
        .ledger
        .read(|tx| tx.handle(slot.id()))
        .unwrap()
        .unwrap();
    row.spec = serde_json::json!({ "place": 3 });
    let error = row.spec::<Thing>().unwrap_err().to_string();
    assert!(
        error.contains("thing") && error.contains(&OWNER.to_string()),
        "{error}"
    );
    row.identity = Some(serde_json::json!("text"));
    assert!(row.identity::<Thing>().is_err());
}

/// Gives one verdict to one step.
struct At(&'static str, Verdict);

impl Faults for At {
    fn verdict(&self, step: &str) -> Verdict {
        if step == self.0 {
            self.1
        } else {
            Verdict::Proceed
        }
    }
}

#[test]
fn each_fault_leaves_what_its_name_says() {
    let rows_after = |step, verdict| {
        let bench = Bench::with(Injector::new(Arc::new(At(step, verdict))));
        let made = bench
            .ledger
            .reserve::<Thing>(OWNER, ThingSpec::new("/a"), &[])
            .and_then(|slot| slot.acquired(1))
            .map(crate::Held::settle);
        let rows = bench.reopened("boot-1").read(|tx| tx.handles()).unwrap();
        (made.err(), rows.first().map(|row| row.state))
    };
    let reserve = "reserve thing for machine";
    for (step, verdict, left) in [
        (reserve, Verdict::Fail, None),
        (reserve, Verdict::CrashBefore, None),
        (reserve, Verdict::CrashAfter, Some(HandleState::Reserved)),
        ("record thing", Verdict::Fail, Some(HandleState::Reserved)),
        (
            "record thing",
            Verdict::CrashBefore,
            Some(HandleState::Reserved),
        ),
        ("record thing", Verdict::CrashAfter, Some(HandleState::Held)),
    ] {
        let (error, found) = rows_after(step, verdict);
        let named = match error {
            Some(LedgerError::Fault(Fault::Failed(named) | Fault::Crashed(named))) => named,
            other => panic!("{step}: {other:?}"),
        };
        assert_eq!((named.as_str(), found), (step, left), "{verdict:?}");
    }
}

#[test]
fn a_transaction_is_whole_or_nothing() {
    let bench = Bench::new();
    let result = bench.ledger.write("half", Synchronous::Full, |tx| {
        tx.put_layer(&super::layer(1, None))?;
        tx.put_sandbox(&super::sandbox(1, Some(1)))?;
        Err::<(), _>(LedgerError::Missing("anything".to_owned()))
    });
    assert!(result.is_err());
    assert!(bench.ledger.read(|tx| tx.sandboxes()).unwrap().is_empty());
    assert!(bench.ledger.read(|tx| tx.layers()).unwrap().is_empty());
    assert!(bench.ledger.mirror().read_all().unwrap().0.is_empty());
    // The connection is as good as before.
    bench
        .write(|tx| tx.put_layer(&super::layer(1, None)))
        .unwrap();
}

#[test]
fn owners_have_one_spelling() {
    for owner in [
        OWNER,
        Owner::Sandbox(SandboxId::from_bits(3)),
        Owner::Template(super::TEMPLATE),
    ] {
        assert_eq!(owner.to_string().parse::<Owner>().unwrap(), owner);
    }
    for bad in [
        "",
        "sandbox",
        "sandbox:",
        "sandbox:xyz",
        "thing:0000000000000001",
        "machine:0000000000000001 ",
    ] {
        assert!(bad.parse::<Owner>().is_err(), "{bad}");
    }
}
