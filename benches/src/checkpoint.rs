//! `checkpoint`: what it costs after little and after much was written.

use crate::Failure;
use crate::lab::{Lab, figure, text};
use crate::table::{Samples, Table, number};

const ROUNDS: usize = 3;
const SANDBOX: &str = "bench-checkpoint";
const MIB: f64 = 1_048_576.0;

/// What one amount of writing led to.
#[derive(Debug, Default)]
struct Results {
    downtime: Samples,
    disk: Samples,
    memory: Samples,
    publication: Samples,
    whole: Samples,
    memory_mib: Samples,
    layer_mib: Samples,
}

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    let amounts = [1_u32, 512];
    let mut results = [Results::default(), Results::default()];
    for _ in 0..ROUNDS {
        for (amount, results) in amounts.iter().zip(&mut results) {
            // A new sandbox each time: the same depth of layers, and the same memory.
            lab.sandbox(SANDBOX, &["--disk", "3G"])?;
            write(lab, *amount)?;
            take(lab, results)?;
            lab.remove(SANDBOX)?;
        }
    }
    let table = Table::new(
        "checkpoint of a running sandbox, ms",
        &["1 MiB", "512 MiB", "ratio"],
    );
    let [little, much] = &results;
    for (name, a, b) in [
        ("downtime", &little.downtime, &much.downtime),
        ("  of it: disk (a new top layer)", &little.disk, &much.disk),
        (
            "  of it: memory and devices, to a file",
            &little.memory,
            &much.memory,
        ),
        (
            "publication (layer and memory on the disk)",
            &little.publication,
            &much.publication,
        ),
        (
            "cowslip checkpoint create, as a whole",
            &little.whole,
            &much.whole,
        ),
        ("memory image, MiB", &little.memory_mib, &much.memory_mib),
        ("frozen layer, MiB", &little.layer_mib, &much.layer_mib),
    ] {
        let ratio = b.ratio(a).median();
        table.words(name, &[a.median(), b.median(), ratio].map(number));
    }
    println!(
        "{ROUNDS} rounds, interleaved; medians. The guest wrote with O_DIRECT, so that its page cache, \
         and with it its memory, stays the same."
    );
    Ok(())
}

/// Writes so many MiB that are not zero to the guest's disk.
fn write(lab: &Lab, amount: u32) -> Result<(), Failure> {
    let script = format!(
        "yes 0123456789abcdef | dd of=/bench bs=1M count={amount} iflag=fullblock oflag=direct status=none && sync"
    );
    lab.cowslip(["exec", SANDBOX, "/bin/sh", "-c", &script])
        .map(drop)
}

fn take(lab: &Lab, results: &mut Results) -> Result<(), Failure> {
    let begun = std::time::Instant::now();
    let checkpoint = lab.json(["checkpoint", "create", SANDBOX])?;
    results.whole.time(begun.elapsed());
    results.downtime.value(figure(&checkpoint, "downtime_ms")?);
    results
        .publication
        .value(figure(&checkpoint, "publication_ms")?);
    results
        .memory_mib
        .value(figure(&checkpoint, "memory_used")? / MIB);
    results
        .layer_mib
        .value(figure(&checkpoint, "disk_used")? / MIB);
    let name = text(&checkpoint, "name")?;
    let event = crate::run::last_event(lab, "checkpoint.created")?;
    results.disk.value(figure(&event, "disk_us")? / 1000.0);
    results.memory.value(figure(&event, "memory_us")? / 1000.0);
    lab.cowslip(["checkpoint", "rm", &name]).map(drop)
}
