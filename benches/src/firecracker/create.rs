//! `create`: from the request for a new sandbox until its first command has ended.

use tempfile::TempDir;

use crate::Failure;
use crate::bare::{Loop, Model};
use crate::lab::{Lab, rounds};
use crate::table::{Samples, Table, number};

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
    let mut phases: [Vec<(String, Samples)>; 2] = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        let disk = scratch.path().join(format!("disk-{round}"));
        std::fs::copy(&image, &disk)?;
        let device = Loop::over(&disk)?;
        let begun = std::time::Instant::now();
        let machine = model.boot(scratch.path(), &device.0).await?;
        bare.time(begun.elapsed());
        drop(machine);
        for (index, (_, lab)) in labs.iter().enumerate() {
            let name = format!("one-{round}");
            engine[index].time(lab.run(&name).await?);
            for (place, phase) in lab.sandbox(&name).phases.into_iter().enumerate() {
                if phases[index].len() == place {
                    phases[index].push((phase.name.clone(), Samples::default()));
                }
                #[allow(clippy::cast_precision_loss)] // far below 2^52
                phases[index][place].1.value(phase.us as f64 / 1000.0);
            }
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
    for ((name, _), phases) in labs.iter().zip(&phases) {
        let table = Table::new(
            &format!("where the time goes, {name}, ms"),
            &["median", "least", "most"],
        );
        for (name, samples) in phases {
            table.spread(name, samples, &[]);
        }
    }
    println!("{rounds} rounds, in turn");
    Ok(())
}
