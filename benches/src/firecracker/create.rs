//! `create`: from the request for a new sandbox until its first command has ended.

use tempfile::TempDir;

use crate::Failure;
use crate::bare::{Loop, Model};
use crate::lab::{Lab, rounds};
use crate::table::{Parts, Samples, Table, number};

const ROUNDS: usize = 7;

pub(crate) async fn bench() -> Result<(), Failure> {
    let rounds = rounds(ROUNDS)?;
    let labs = [
        ("direct", Lab::new("direct", 0)),
        ("jail", Lab::new("jail", 0)),
    ];
    labs[0].1.run("model").await?;
    let model = Model::of(&labs[0].1, "model").await?;
    labs[0].1.remove(&["model".to_owned()]);
    let image = labs[0].1.image()?;
    let scratch = TempDir::with_prefix("cw-")?;
    let mut bare = Samples::default();
    let mut engine = [Samples::default(), Samples::default()];
    let mut parts: [Parts; 3] = Default::default();
    for round in 0..rounds {
        let disk = scratch.path().join(format!("disk-{round}"));
        std::fs::copy(&image, &disk)?;
        let device = Loop::over(&disk)?;
        let begun = std::time::Instant::now();
        let machine = model.boot(scratch.path(), &device.0).await?;
        bare.time(begun.elapsed());
        for (name, took) in &machine.parts {
            parts[0].note(name, *took);
        }
        drop(machine);
        for (index, (_, lab)) in labs.iter().enumerate() {
            let name = format!("one-{round}");
            let (whole, steps) = lab.run_in_steps(&name).await?;
            engine[index].time(whole);
            let parts = &mut parts[index + 1];
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
    for (name, parts) in ["bare", "direct", "jail"].iter().zip(&parts) {
        parts.print(name);
    }
    println!("{rounds} rounds, in turn");
    Ok(())
}
