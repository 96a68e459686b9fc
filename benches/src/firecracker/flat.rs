//! `flat`: what a sandbox costs the engine, one at a time and several at once.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use crate::Failure;
use crate::lab::{Lab, Network, own, rounds};
use crate::table::{Samples, Table};

const ROUNDS: usize = 5;
const CREATES: usize = 3;
const FORKS: u32 = 10;

/// Processor time of a process.
fn spent(pid: u32) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').ok_or("its stat has no name")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    let all = ticks(11).zip(ticks(12)).ok_or("its stat has no times")?;
    Ok(Duration::from_millis(
        (all.0 + all.1) * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}

/// What was measured of one way, for each sandbox of it.
#[derive(Default)]
struct Way {
    wall: Samples,
    own: Samples,
    processor: Samples,
}

impl Way {
    fn note(&mut self, lab: &Lab, names: &[String], wall: Duration, processor: Duration) {
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        self.wall.time(wall / count);
        self.processor.time(processor / count);
        let phases: Duration = names
            .iter()
            .map(|name| own(&lab.sandbox(name).phases))
            .sum();
        self.own.time(phases / count);
        lab.remove(names);
    }
}

pub(crate) async fn bench() -> Result<(), Failure> {
    let rounds = rounds(ROUNDS)?;
    let lab = Lab::new("jail", 8, Network::Made);
    let pid = lab.pid()?;
    let mut ways: [Way; 4] = Default::default();
    for round in 0..rounds {
        for (way, count) in [(0, 1), (1, CREATES)] {
            let names: Vec<String> = (0..count)
                .map(|index| format!("new-{round}-{index}"))
                .collect();
            let (before, begun) = (spent(pid)?, Instant::now());
            try_join_all(names.iter().map(|name| lab.run(name))).await?;
            ways[way].note(&lab, &names, begun.elapsed(), spent(pid)? - before);
        }
    }
    lab.run("parent").await?;
    lab.checkpoint("parent", "point").await?;
    for round in 0..rounds {
        for (way, count) in [(2, 1), (3, FORKS)] {
            let name = format!("fork-{round}-{count}");
            let (before, begun) = (spent(pid)?, Instant::now());
            lab.fork("point", &name, count).await?;
            let names: Vec<String> = match count {
                1 => vec![name],
                _ => (1..=count).map(|index| format!("{name}-{index}")).collect(),
            };
            ways[way].note(&lab, &names, begun.elapsed(), spent(pid)? - before);
        }
    }
    let table = Table::new(
        "medians for each sandbox, ms",
        &["wall", "own phases", "processor"],
    );
    let names = [
        "create, one",
        "create, three at once",
        "fork, one",
        "fork, ten at once",
    ];
    for (name, way) in names.iter().zip(&ways) {
        let median = |samples: &Samples| crate::table::number(samples.median());
        table.words(
            name,
            &[median(&way.wall), median(&way.own), median(&way.processor)],
        );
    }
    println!(
        "{rounds} rounds, in turn; \"own phases\" wait for nothing but the host, \"processor\" is the engine's process \
         from the request to its answer"
    );
    lab.remove(&["parent".to_owned()]);
    Ok(())
}
