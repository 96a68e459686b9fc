//! `create`: from the request for a new sandbox until its first command has ended.

use tempfile::TempDir;

use crate::Failure;
use crate::bare::{Loop, Model};
use crate::lab::{Lab, Network, rounds};
use crate::table::{Parts, Samples, Table, number};

const ROUNDS: usize = 7;

pub(crate) async fn bench() -> Result<(), Failure> {
    let rounds = rounds(ROUNDS)?;
    let labs = [
        ("direct, no network", "direct", Network::None),
        ("jail, no network", "jail", Network::None),
        ("jail, a spare network", "jail", Network::Spare),
        ("jail, a network made for it", "jail", Network::Made),
    ]
    .map(|(name, isolation, network)| (name, Lab::new(isolation, 0, network)));
    // Each engine's first sandbox also pays for what all of its sandboxes share.
    for (_, lab) in &labs {
        lab.run("model").await?;
    }
    let model = Model::of(&labs[0].1, "model").await?;
    for (_, lab) in &labs {
        lab.remove(&["model".to_owned()]);
    }
    let image = labs[0].1.image()?;
    let scratch = TempDir::with_prefix("cw-")?;
    let mut bare = Samples::default();
    let mut engine = labs.each_ref().map(|_| Samples::default());
    let mut bare_parts = Parts::default();
    let mut parts = labs.each_ref().map(|_| Parts::default());
    for round in 0..rounds {
        let disk = scratch.path().join(format!("disk-{round}"));
        std::fs::copy(&image, &disk)?;
        let device = Loop::over(&disk)?;
        let begun = std::time::Instant::now();
        let machine = model.boot(scratch.path(), &device.0).await?;
        bare.time(begun.elapsed());
        for (name, took) in &machine.parts {
            bare_parts.note(name, *took);
        }
        drop(machine);
        for (index, (_, lab)) in labs.iter().enumerate() {
            let name = format!("one-{round}");
            let (whole, steps) = lab.run_in_steps(&name).await?;
            engine[index].time(whole);
            let parts = &mut parts[index];
            let mut told = std::time::Duration::ZERO;
            for phase in lab.sandbox(&name).phases {
                let took = std::time::Duration::from_micros(phase.us);
                parts.note(&phase.name, took);
                told += took;
            }
            for (step, took) in steps {
                if step == "created" {
                    parts.note("before: the sandbox is made", took);
                    told += took;
                }
            }
            parts.note(
                "the rest: records, session, command",
                whole.saturating_sub(told),
            );
            lab.remove(&[name]);
        }
    }
    let table = Table::new(
        "request to end of the first command, ms",
        &["median", "least", "most", "to bare", "beyond it"],
    );
    table.spread("bare, a ready device", &bare, &[]);
    for ((name, _), samples) in labs.iter().zip(&engine) {
        let more = [
            number(samples.ratio(&bare).median()),
            number(samples.difference(&bare).median()),
        ];
        table.spread(&format!("cowslip, {name}"), samples, &more);
    }
    bare_parts.print("bare");
    for ((name, _), parts) in labs.iter().zip(&parts) {
        parts.print(name);
    }
    println!("{rounds} rounds, in turn");
    Ok(())
}
