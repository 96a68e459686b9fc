//! `run`: from the command to the first byte of its output, by part, beside plain QEMU.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Failure;
use crate::floor::{COMMAND, Floor};
use crate::lab::{Kernel, Lab, TEMPLATE, figure};
use crate::table::{Samples, Table, number, percent};

const ROUNDS: usize = 5;

/// The parts, in their order; all but the first two of the guest's are ours.
const PARTS: &[(&str, bool)] = &[
    ("command line: start, connect, ask", true),
    ("engine: record and volume", true),
    ("engine: sockets, files; QEMU's own start", false),
    ("guest: kernel", false),
    ("guest: modules, disk, agent", false),
    ("firmware before the kernel; the link after it", false),
    ("engine: set up the guest and publish", true),
    ("exec: start the command, first byte", true),
];

/// One run.
struct Split {
    parts: [f64; PARTS.len()],
    first_byte: Duration,
    exit: Duration,
}

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    for kernel in lab.kernels() {
        compare(lab, kernel)?;
    }
    start_up(lab)
}

fn compare(lab: &Lab, kernel: &Kernel) -> Result<(), Failure> {
    let floor = Floor::of(lab, kernel)?;
    // Both sides once for the page cache.
    floor.boot()?;
    let mut parts = [(); PARTS.len()].map(|()| Samples::default());
    let mut whole = Samples::default();
    let mut exit = Samples::default();
    let mut plain = Samples::default();
    let mut round = |first: bool| -> Result<(), Failure> {
        if first {
            plain.time(floor.boot()?);
        }
        let split = run(lab, kernel)?;
        for (samples, value) in parts.iter_mut().zip(split.parts) {
            samples.value(value);
        }
        whole.time(split.first_byte);
        exit.time(split.exit - split.first_byte);
        if !first {
            plain.time(floor.boot()?);
        }
        Ok(())
    };
    // Whoever goes second finds a warmer machine: they take turns.
    for index in 0..ROUNDS {
        round(index % 2 == 0)?;
    }
    let table = Table::new(
        &format!("run --rm, {}, ms", kernel.what),
        &["median", "least", "most", "of whole"],
    );
    let share = |samples: &Samples| vec![percent(samples.median(), whole.median())];
    for ((name, _), samples) in PARTS.iter().zip(&parts) {
        table.spread(name, samples, &share(samples));
    }
    table.spread("cowslip run, to the first byte", &whole, &share(&whole));
    table.spread("plain QEMU, to the first byte", &plain, &share(&plain));
    table.spread("afterwards: to the end of cowslip run --rm", &exit, &[]);
    let own: f64 = PARTS
        .iter()
        .zip(&parts)
        .filter(|((_, ours), _)| *ours)
        .map(|(_, samples)| samples.median())
        .sum();
    println!(
        "cowslip to plain QEMU, median of {ROUNDS} interleaved rounds: {}; our own part: {} ms, {} of the whole",
        number(whole.ratio(&plain).median()),
        number(own),
        percent(own, whole.median())
    );
    Ok(())
}

/// Runs the command in a new sandbox and takes the times apart.
fn run(lab: &Lab, kernel: &Kernel) -> Result<Split, Failure> {
    let mut command = lab.command();
    command
        .args([
            "run",
            "--rm",
            "--timings",
            "--kernel",
            kernel.name,
            TEMPLATE,
        ])
        .args(COMMAND)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let stderr = child.stderr.take().ok_or("no standard error")?;
    let steps = std::thread::spawn(move || read_steps(stderr, begun));
    let mut stdout = child.stdout.take().ok_or("no standard output")?;
    let count = stdout.read(&mut [0])?;
    let first_byte = begun.elapsed();
    std::io::copy(&mut stdout, &mut std::io::sink())?;
    let status = child.wait()?;
    let exit = begun.elapsed();
    let (steps, said) = steps.join().map_err(|_| "a thread died")??;
    if count == 0 || !status.success() {
        return Err(format!("cowslip run failed ({status}): {said}").into());
    }
    let step = |name: &str| {
        steps
            .get(name)
            .copied()
            .ok_or(format!("no step \"{name}\": {said}"))
    };
    let (created, monitor, guest, started) = (
        step("created")?,
        step("monitor")?,
        step("guest")?,
        step("started")?,
    );
    let event = last_event(lab, "sandbox.started")?;
    let kernel_ms = figure(&event, "kernel_us")? / 1000.0;
    let agent_ms = figure(&event, "agent_us")? / 1000.0;
    let total = first_byte.as_secs_f64() * 1000.0;
    let parts = [
        created.at - created.took,
        created.took,
        monitor.took,
        kernel_ms,
        agent_ms - kernel_ms,
        guest.took - agent_ms,
        started.took - monitor.took - guest.took,
        total - started.at,
    ];
    Ok(Split {
        parts,
        first_byte,
        exit,
    })
}

/// When a step was told and how long it took, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Step {
    at: f64,
    took: f64,
}

type Steps = (HashMap<String, Step>, String);

/// Reads what `--timings` prints: `   12.345 ms  name`.
fn read_steps(stderr: impl Read, begun: Instant) -> Result<Steps, std::io::Error> {
    let mut steps = HashMap::new();
    let mut said = String::new();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        let at = begun.elapsed().as_secs_f64() * 1000.0;
        if let Some((took, name)) = line.split_once(" ms ")
            && let Ok(took) = took.trim().parse()
        {
            steps.insert(name.trim().to_owned(), Step { at, took });
        }
        said.push_str(&line);
        said.push('\n');
    }
    Ok((steps, said))
}

/// The detail of the latest event of a kind.
pub(crate) fn last_event(lab: &Lab, kind: &str) -> Result<Value, Failure> {
    let lines = lab.cowslip(["events", "--json"])?.stdout;
    for line in lines.lines().rev() {
        let event: Value = serde_json::from_str(line)?;
        if event["kind"] == kind {
            return Ok(event["detail"].clone());
        }
    }
    Err(format!("there is no event \"{kind}\"").into())
}

/// What the first command pays that finds no engine.
fn start_up(lab: &Lab) -> Result<(), Failure> {
    let mut cold = Samples::default();
    let mut warm = Samples::default();
    for _ in 0..ROUNDS {
        lab.cowslip(["serve", "--stop"])?;
        cold.time(lab.cowslip(["ls"])?.took);
        warm.time(lab.cowslip(["ls"])?.took);
    }
    let table = Table::new("cowslip ls, ms", &["median", "least", "most"]);
    table.spread("no engine runs: one is started", &cold, &[]);
    table.spread("an engine runs", &warm, &[]);
    Ok(())
}
