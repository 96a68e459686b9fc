//! `warm`: what a start waits for its network, where a spare is ready and where none is.

use std::time::Duration;

use cowslip_e2e::{Instance, Lab};

use crate::table::{Samples, Table, number};
use crate::{Failure, guest};

const ROUNDS: usize = 10;

pub(crate) fn bench(_: &Lab) -> Result<(), Failure> {
    let rounds = crate::rounds(ROUNDS)?;
    let [warm, cold] = [("10.201.0.0/23", 4), ("10.202.0.0/23", 0)]
        .map(|(range, spares)| guest::engine(range, &format!("warm = {spares}")));
    let [mut first, mut taken, mut made] = [(); 3].map(|()| Samples::default());
    // It stays, so that the host's rules do: only the network itself is measured after it.
    for engine in [&warm, &cold] {
        first.time(start(engine, "stays")?);
    }
    for round in 0..rounds {
        let name = format!("one-{round}");
        taken.time(start(&warm, &name)?);
        made.time(start(&cold, &name)?);
        for engine in [&warm, &cold] {
            let _ = engine.call(["rm", "--force", &name]).ok();
        }
    }
    let table = Table::new(
        "a start's phase \"network\" [ms]",
        &["median", "least", "most", "to warm"],
    );
    let ratio = |samples: &Samples| [number(samples.median() / taken.median())];
    table.spread(
        "an engine's first: the host's rules too",
        &first,
        &ratio(&first),
    );
    table.spread("made for the start", &made, &ratio(&made));
    table.spread("a spare is taken", &taken, &ratio(&taken));
    println!("{rounds} rounds, in turn; an engine's first twice");
    Ok(())
}

/// Starts a sandbox; gives what it waited for its network.
fn start(engine: &Instance, name: &str) -> Result<Duration, Failure> {
    // Its guest is up after this, which takes longer than the spare that is made behind it.
    let _ = engine
        .call(["run", "-d", "--name", name, "--ttl", "30m", "box"])
        .arg("sleep")
        .arg("10000")
        .ok();
    let phases = engine.sandbox(name).phases;
    let network = phases.iter().find(|phase| phase.name == "network");
    let network = network.ok_or("the start had no phase \"network\"")?;
    Ok(Duration::from_micros(network.us))
}
