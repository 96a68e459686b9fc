//! `freeze`: what a checkpoint costs the disk after little and after much was written. The guest stands
//! still for the last of the steps only; publication is everything to its end.

use std::time::Instant;

use cowslip_ledger::{LedgerError, Synchronous};
use cowslip_model::SandboxId;

use crate::Failure;
use crate::lab::{Disk, Lab, MIB, Switch};
use crate::table::{Samples, Table, number};

/// What is written before a freeze, in MiB, and whether the host has written it back by then: while it
/// does, its processors are busy.
const AMOUNTS: [(u64, bool); 5] = [
    (1, false),
    (64, false),
    (1024, false),
    (64, true),
    (1024, true),
];
const ROUNDS: u64 = 5;
const DISK: u64 = 1088 * MIB;

#[derive(Default)]
struct Results {
    prepare: Samples,
    freeze: Samples,
    sync: Samples,
    whole: Samples,
}

pub(crate) fn bench() -> Result<(), Failure> {
    let lab = Lab::new(16 * MIB)?;
    let table = Table::new(
        "disk of a checkpoint [ms], medians",
        &["prepare", "still", "(least)", "sync", "published"],
    );
    for (case, (amount, written_back)) in (0..).zip(AMOUNTS) {
        let mut results = Results::default();
        for round in 0..ROUNDS {
            let bits = case << 8 | round << 4;
            lab.runtime
                .block_on(once(&lab, bits + 1, amount, written_back, &mut results))?;
        }
        let least = number(results.freeze.quantile(0.0));
        let [prepare, freeze, sync, whole] =
            [results.prepare, results.freeze, results.sync, results.whole]
                .map(|samples| number(samples.median()));
        let how = if written_back { ", written back" } else { "" };
        let words = [prepare, freeze, least, sync, whole];
        table.words(&format!("after {amount} MiB{how}"), &words);
    }
    Ok(())
}

async fn once(
    lab: &Lab,
    bits: u64,
    amount: u64,
    written_back: bool,
    results: &mut Results,
) -> Result<(), Failure> {
    let sandbox = SandboxId::from_bits(bits);
    let top = lab.record(bits, None, Some(DISK));
    let next = lab.record(bits + 1, Some(&top), Some(DISK));
    lab.make(&top, None).await?;
    let path = lab.activate(sandbox, std::slice::from_ref(&top)).await?;
    let disk = Disk::open(&path, 1 << 20)?;
    for at in 0..amount {
        disk.write(at * MIB)?;
    }
    if written_back {
        lab.volumes.sync(&lab.site, &top).await?;
    }
    let begun = Instant::now();
    let (site, volumes, switch) = (&lab.site, &lab.volumes, Switch(sandbox));
    lab.make(&next, Some(&top)).await?;
    volumes.prepare_freeze(site, &top, &next, &switch).await?;
    let prepared = Instant::now();
    volumes.freeze(site, &top, &next, &switch).await?;
    let frozen = Instant::now();
    volumes.sync(site, &top).await?;
    let synced = Instant::now();
    let mut record = top.clone();
    record.frozen = true;
    site.ledger
        .write::<_, LedgerError>("publish", Synchronous::Full, |tx| tx.put_layer(&record))?;
    results.prepare.time(prepared - begun);
    results.freeze.time(frozen - prepared);
    results.sync.time(synced - frozen);
    results.whole.time(begun.elapsed());
    drop(disk);
    lab.remove(sandbox, &[top.clone(), next]).await?;
    site.ledger
        .write::<_, LedgerError>("forget", Synchronous::Normal, |tx| tx.delete_layer(top.id))?;
    Ok(())
}
