//! The failure harness on the real kernel: a volume's whole life, and at each of its durable steps an
//! error, a death before and a death after. An engine that died is followed by another, which releases
//! what is recorded; nothing may be left then.
//!
//! Each object has two such steps, its intent and its identity, with its making between them: a death
//! after the first is one before the object is made, a death before the second one after.

use std::sync::Arc;

use cowslip_engine::unwind::unwind;
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{LayerRecord, Owner, Synchronous, Verdict};
use cowslip_model::SandboxId;
use cowslip_sim::faults::{Recorder, Script};
use cowslip_store::StoreError;

use crate::bench::{Bench, Switch};

const PARENT: SandboxId = SandboxId::from_bits(1);
const CHILD: SandboxId = SandboxId::from_bits(2);

fn layers(bench: &Bench) -> [LayerRecord; 5] {
    let size = crate::bench::DISK * 2;
    let a = bench.record(1, None, size);
    let b = bench.record(2, Some(&a), size);
    let c = bench.record(3, Some(&a), size);
    let merged = bench.record(4, None, size);
    let d = bench.record(5, Some(&b), size);
    [a, b, c, merged, d]
}

fn put(bench: &Bench, layer: &LayerRecord) -> Result<(), StoreError> {
    let ledger = &bench.site.ledger;
    Ok(ledger.write("put a layer", Synchronous::Normal, |tx| tx.put_layer(layer))?)
}

fn frozen(layer: &LayerRecord) -> LayerRecord {
    LayerRecord {
        frozen: true,
        ..layer.clone()
    }
}

/// Create, run, checkpoint, fork, merge, checkpoint again, end: the disk's part of it.
async fn life(bench: &Bench) -> Result<(), StoreError> {
    let [a, b, c, merged, d] = layers(bench);
    let (site, volumes) = (&bench.site, &bench.volumes);
    for layer in [&a, &b, &merged, &d] {
        put(bench, layer)?;
    }
    volumes.make_layer(site, &a, None).await?;
    volumes
        .activate(site, PARENT, std::slice::from_ref(&a))
        .await?;
    volumes.make_layer(site, &b, Some(&a)).await?;
    let disk = Switch(PARENT);
    volumes.prepare_freeze(site, &a, &b, &disk).await?;
    volumes.freeze(site, &a, &b, &disk).await?;
    volumes.settle(site, PARENT).await?;
    volumes.make_layer(site, &c, Some(&a)).await?;
    volumes.activate(site, CHILD, &[a.clone(), c]).await?;
    volumes.merge(site, &[frozen(&a)], &merged).await?;
    put(bench, &frozen(&merged))?;
    let b = LayerRecord {
        parent: Some(merged.id),
        ..b
    };
    put(bench, &b)?;
    volumes.make_layer(site, &d, Some(&b)).await?;
    volumes.prepare_freeze(site, &b, &d, &disk).await?;
    volumes.freeze(site, &b, &d, &disk).await?;
    volumes.settle(site, PARENT).await?;
    end(bench).await
}

async fn end(bench: &Bench) -> Result<(), StoreError> {
    let mut failed = None;
    for owner in [Owner::Machine(CHILD), Owner::Machine(PARENT)] {
        failed = unwind(&bench.site, owner).err().or(failed);
    }
    bench.volumes.retire(&bench.site).await?;
    let [a, b, c, merged, d] = layers(bench);
    for layer in [d, c, b, merged, a] {
        failed = unwind(&bench.site, Owner::Layer(layer.id)).err().or(failed);
    }
    match failed {
        Some(error) => panic!("{error}"),
        None => Ok(()),
    }
}

#[tokio::test]
async fn an_error_or_a_death_at_any_step_leaves_nothing() {
    // covers R1 R3 R8 R12 R13 R18 R21 R22 R47
    let recorder = Arc::new(Recorder::default());
    let bench = Bench::new();
    {
        let recorded = bench.again(Injector::new(recorder.clone()));
        life(&recorded).await.unwrap();
    }
    bench.assert_clean();
    let steps = recorder.steps();
    assert!(steps.len() > 30, "{steps:?}");
    for (index, step) in steps.iter().enumerate() {
        for verdict in [Verdict::Fail, Verdict::CrashBefore, Verdict::CrashAfter] {
            let script = Arc::new(Script::at(index, verdict));
            let doomed = bench.again(Injector::new(script));
            // A panic of `end` is a failed release, as it may be at this step.
            let outcome = tokio::spawn(async move { life(&doomed).await }).await;
            assert!(
                !matches!(outcome, Ok(Ok(()))),
                "nothing went wrong at {step}: {verdict:?}"
            );
            let next = bench.again(Injector::default());
            end(&next).await.unwrap_or_else(|error| {
                panic!("{verdict:?} at step {index}, {step}: {error}");
            });
            assert_eq!(
                next.devices(),
                [""; 0],
                "{verdict:?} at step {index}, {step}"
            );
            next.assert_clean();
        }
    }
}
