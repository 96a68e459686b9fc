//! `fork`: a checkpoint of a running sandbox, a child of it, and the child's first command.

use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::Failure;
use crate::bare::{Loop, Model};
use crate::lab::{Lab, Network, rounds};
use crate::table::{Parts, Samples, Table, number};

const ROUNDS: usize = 7;
const PARENT: &str = "parent";

struct Side {
    name: &'static str,
    lab: Lab,
    whole: Samples,
    downtime: Samples,
    parts: Parts,
}

impl Side {
    async fn round(&mut self, round: usize) -> Result<(), Failure> {
        let (point, child) = (format!("point-{round}"), format!("child-{round}"));
        let begun = Instant::now();
        let taken = self.lab.checkpoint(PARENT, &point).await?;
        let checkpoint = begun.elapsed();
        self.lab.fork(&point, &child, 1).await?;
        let forked = begun.elapsed();
        self.lab.exec(&child).await?;
        let whole = begun.elapsed();
        self.whole.time(whole);
        self.parts.note("checkpoint", checkpoint);
        let mut phases = Duration::ZERO;
        for phase in self.lab.sandbox(&child).phases {
            let took = Duration::from_micros(phase.us);
            self.parts.note(&format!("fork: {}", phase.name), took);
            phases += took;
        }
        let rest = (forked - checkpoint).saturating_sub(phases);
        self.parts.note("fork: the rest, records", rest);
        self.parts.note("command", whole - forked);
        self.downtime
            .value(taken["downtime_ms"].as_f64().unwrap_or(f64::NAN));
        self.lab.remove(&[child]);
        let _ = self.lab.instance().call(["checkpoint", "rm", &point]).ok();
        Ok(())
    }
}

pub(crate) async fn bench() -> Result<(), Failure> {
    let rounds = rounds(ROUNDS)?;
    let side = |name, isolation, chain, network| Side {
        name,
        lab: Lab::new(isolation, chain, network),
        whole: Samples::default(),
        downtime: Samples::default(),
        parts: Parts::default(),
    };
    let mut sides = [
        side("cowslip, direct, all of memory", "direct", 0, Network::None),
        side("cowslip, jail, all of memory", "jail", 0, Network::None),
        side("cowslip, jail, what changed", "jail", 64, Network::None),
        side("the same, a spare network", "jail", 64, Network::Spare),
    ];
    for side in &sides {
        side.lab.run(PARENT).await?;
    }
    // The first holds all in any case.
    for side in &sides[2..] {
        let _: Value = side.lab.checkpoint(PARENT, "first").await?;
    }
    let model = Model::of(&sides[0].lab, PARENT).await?;
    let scratch = TempDir::with_prefix("cw-")?;
    let disk = scratch.path().join("disk");
    std::fs::copy(sides[0].lab.image()?, &disk)?;
    let device = Loop::over(&disk)?;
    let parent = model.boot(scratch.path(), &device.0).await?;
    let mut bare = Samples::default();
    let mut downtime = Samples::default();
    for round in 0..rounds {
        // A new file each time, as a checkpoint is: writing over an old one costs half.
        let point = scratch.path().join(format!("point-{round}"));
        std::fs::create_dir(&point)?;
        let begun = Instant::now();
        parent.save(&point).await?;
        let saved = begun.elapsed();
        let copy = scratch.path().join(format!("copy-{round}"));
        std::fs::copy(&disk, &copy)?;
        let ready = Loop::over(&copy)?;
        let begun = Instant::now();
        let child = model.restore(scratch.path(), &ready.0, &point).await?;
        bare.time(saved + begun.elapsed());
        downtime.time(saved);
        drop(child);
        std::fs::remove_dir_all(&point)?;
        for side in &mut sides {
            side.round(round).await?;
        }
    }
    let table = Table::new(
        "checkpoint, fork, first command, ms",
        &[
            "median",
            "least",
            "most",
            "to bare",
            "beyond it",
            "stood still",
        ],
    );
    let empty = String::new();
    let still = number(downtime.median());
    table.spread("bare, ready devices", &bare, &[empty.clone(), empty, still]);
    for side in &sides {
        let more = [
            number(side.whole.ratio(&bare).median()),
            number(side.whole.difference(&bare).median()),
            number(side.downtime.median()),
        ];
        table.spread(side.name, &side.whole, &more);
    }
    println!("{rounds} rounds, in turn");
    for side in &sides {
        side.parts.print(side.name);
        side.lab.remove(&[PARENT.to_owned()]);
    }
    Ok(())
}
