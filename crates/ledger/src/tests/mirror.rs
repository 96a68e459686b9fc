//! The second witness.

use cowslip_model::{LayerId, SandboxId};

use super::{Bench, Thing, ThingSpec, layer, sandbox};
use crate::Owner;
use crate::mirror::MirrorFile;

const ID: SandboxId = SandboxId::from_bits(1);

fn file(bench: &Bench) -> Option<MirrorFile> {
    let (good, bad) = bench.ledger.mirror().read_all().unwrap();
    assert!(bad.is_empty(), "{bad:?}");
    good.into_iter()
        .find(|(id, _)| *id == ID)
        .map(|(_, file)| file)
}

fn hold(bench: &Bench, owner: Owner, path: &str) {
    bench
        .ledger
        .reserve::<Thing>(owner, ThingSpec::new(path), &[])
        .unwrap()
        .acquired(1)
        .unwrap()
        .settle();
}

#[test]
fn it_holds_all_that_a_teardown_needs() {
    // covers R43, R47
    let bench = Bench::new();
    hold(&bench, Owner::Sandbox(ID), "/directory");
    let early = file(&bench).unwrap();
    assert_eq!(
        (early.sandbox, early.handles.len()),
        (None, 1),
        "before there is a record"
    );

    hold(&bench, Owner::Layer(LayerId::from_bits(1)), "/base");
    bench
        .write(|tx| {
            tx.put_layer(&layer(1, None))?;
            tx.put_layer(&layer(2, Some(1)))?;
            tx.put_layer(&layer(3, Some(2)))?;
            let mut record = sandbox(1, Some(2));
            record.next_layer = Some(LayerId::from_bits(3));
            tx.put_sandbox(&record)
        })
        .unwrap();
    hold(&bench, Owner::Machine(ID), "/process");
    let found = file(&bench).unwrap();
    assert_eq!(
        found.sandbox,
        bench.ledger.read(|tx| tx.sandbox(ID)).unwrap()
    );
    let layers: Vec<_> = found.layers.iter().map(|layer| layer.id).collect();
    assert_eq!(
        layers,
        [1, 2, 3].map(LayerId::from_bits),
        "base first, the one to come last"
    );
    let mut rows = bench.ledger.read(|tx| tx.handles()).unwrap();
    let mut mirrored = found.handles;
    rows.sort_by_key(|row| row.seq);
    mirrored.sort_by_key(|row| row.seq);
    assert_eq!(mirrored, rows);
}

#[test]
fn it_follows_every_change_and_goes_with_the_sandbox() {
    let bench = Bench::new();
    bench
        .write(|tx| {
            tx.put_layer(&layer(1, None))?;
            tx.put_sandbox(&sandbox(1, Some(1)))
        })
        .unwrap();
    hold(&bench, Owner::Machine(ID), "/process");
    let rows = bench
        .ledger
        .read(|tx| tx.handles_of(Owner::Machine(ID)))
        .unwrap();
    bench.ledger.forget(&rows[0]).unwrap();
    assert_eq!(file(&bench).unwrap().handles, []);
    bench.write(|tx| tx.delete_sandbox(ID)).unwrap();
    assert_eq!(file(&bench), None);
    // A handle that is released after its sandbox's record went leaves no file either.
    hold(&bench, Owner::Sandbox(ID), "/late");
    let rows = bench
        .ledger
        .read(|tx| tx.handles_of(Owner::Sandbox(ID)))
        .unwrap();
    bench.ledger.forget(&rows[0]).unwrap();
    assert_eq!(file(&bench), None);
    assert_eq!(
        std::fs::read_dir(bench.dir.path().join("handles"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_are_read() {
    // covers R43
    let bench = Bench::new();
    bench
        .write(|tx| {
            tx.put_layer(&layer(1, None))?;
            tx.put_sandbox(&sandbox(1, Some(1)))?;
            tx.put_sandbox(&sandbox(2, Some(1)))
        })
        .unwrap();
    let dir = bench.dir.path().join("handles");
    let damaged = dir.join(format!("{ID}.json"));
    std::fs::write(&damaged, b"{ \"version\": ").unwrap();
    std::fs::write(dir.join("0000000000000003.json.tmp"), b"half").unwrap();
    std::fs::write(dir.join("..json"), b"nothing of ours").unwrap();
    let (good, bad) = bench.ledger.mirror().read_all().unwrap();
    assert_eq!(
        good.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [SandboxId::from_bits(2)]
    );
    assert_eq!(bad, [damaged]);
    // The next change makes it whole again.
    bench
        .write(|tx| tx.put_sandbox(&sandbox(1, Some(1))))
        .unwrap();
    assert!(file(&bench).is_some());
}

#[test]
fn no_commit_without_its_mirror() {
    // covers R47
    let bench = Bench::new();
    std::fs::remove_dir(bench.dir.path().join("handles")).unwrap();
    let made = bench
        .ledger
        .reserve::<Thing>(Owner::Sandbox(ID), ThingSpec::new("/a"), &[]);
    assert!(made.is_err(), "the second witness did not see it");
    assert!(bench.ledger.read(|tx| tx.handles()).unwrap().is_empty());
}
