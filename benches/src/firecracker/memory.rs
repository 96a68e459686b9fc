//! `memory`: what the engine holds, and what forks share.

use crate::Failure;
use crate::lab::{Lab, MEMORY_MIB, Network};
use crate::table::Table;

const FORKS: u32 = 10;

/// Fields of a file of `/proc/<pid>` in KiB.
fn kib(pid: u32, file: &str, field: &str) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    Ok(value
        .ok_or_else(|| format!("{file} has no {field}"))?
        .parse()?)
}

#[allow(clippy::cast_precision_loss)] // KiB, for a table
fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}

pub(crate) async fn bench() -> Result<(), Failure> {
    let lab = Lab::new("jail", 8, Network::Made);
    let pid = lab.pid()?;
    let mut engine = vec![(0, kib(pid, "status", "VmRSS")?)];
    lab.run("parent").await?;
    lab.checkpoint("parent", "point").await?;
    engine.push((1, kib(pid, "status", "VmRSS")?));
    lab.fork("point", "fork", FORKS).await?;
    engine.push((u64::from(FORKS) + 1, kib(pid, "status", "VmRSS")?));
    let (mut rss, mut pss, mut private) = (0, 0, 0);
    for index in 1..=FORKS {
        let name = format!("fork-{index}");
        lab.exec(&name).await?;
        let machine = lab.sandbox(&name).pid.ok_or("a fork has no process")?;
        rss += kib(machine, "smaps_rollup", "Rss")?;
        pss += kib(machine, "smaps_rollup", "Pss")?;
        private += kib(machine, "smaps_rollup", "Private_Dirty")?;
    }
    lab.fork("point", "more", FORKS - 1).await?;
    engine.push((2 * u64::from(FORKS), kib(pid, "status", "VmRSS")?));
    let table = Table::new("resident size of the engine", &["MiB"]);
    for (count, size) in engine {
        table.words(&format!("{count} sandboxes"), &[mib(size)]);
    }
    let title = format!("{FORKS} forks of {MEMORY_MIB} MiB that ran a command, each");
    let table = Table::new(&title, &["MiB"]);
    for (name, all) in [("Rss", rss), ("Pss", pss), ("written by itself", private)] {
        table.words(name, &[mib(all / u64::from(FORKS))]);
    }
    Ok(())
}
