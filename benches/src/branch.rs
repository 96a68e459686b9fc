//! `branch`: forks of a checkpoint, and the other verbs that end or bring back a sandbox.

use crate::Failure;
use crate::lab::{Lab, text};
use crate::table::{Samples, Table};

const ROUNDS: usize = 5;
const SANDBOX: &str = "bench-branch";

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    lab.sandbox(SANDBOX, &[])?;
    let checkpoint = text(&lab.json(["checkpoint", "create", SANDBOX])?, "name")?;
    let names = [
        "fork, one",
        "fork, four at once",
        "pause",
        "resume",
        "stop",
        "start",
        "rm of a running sandbox",
        "rm of a stopped sandbox",
        "ls",
    ];
    let mut samples = names.map(|_| Samples::default());
    for _ in 0..ROUNDS {
        let [one, four, pause, resume, stop, start, rm, rm_stopped, ls] = &mut samples;
        one.time(
            lab.cowslip(["fork", &checkpoint, "--name", "bench-one"])?
                .took,
        );
        rm.time(lab.remove("bench-one")?);
        let words = ["fork", &checkpoint, "--name", "bench-four", "--count", "4"];
        four.time(lab.cowslip(words)?.took);
        ls.time(lab.cowslip(["ls"])?.took);
        for index in 1..=4 {
            let name = format!("bench-four-{index}");
            if index == 1 {
                lab.cowslip(["stop", &name])?;
                rm_stopped.time(lab.cowslip(["rm", &name])?.took);
            } else {
                rm.time(lab.remove(&name)?);
            }
        }
        for (verb, samples) in [
            ("pause", &mut *pause),
            ("resume", resume),
            ("stop", stop),
            ("start", start),
        ] {
            samples.time(lab.cowslip([verb, SANDBOX])?.took);
        }
    }
    lab.remove(SANDBOX)?;
    lab.cowslip(["checkpoint", "rm", &checkpoint])?;
    let table = Table::new("verbs as commands, ms", &["median", "least", "most"]);
    for (name, samples) in names.iter().zip(&samples) {
        table.spread(name, samples, &[]);
    }
    println!("{ROUNDS} rounds, in turn");
    Ok(())
}
