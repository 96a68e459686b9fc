//! Benchmarks: cowslip beside what it stands on, in one run on one machine.
//!
//! ```text
//!   run         first byte of a new sandbox, by part   | plain QEMU, the same kernel and machine
//!   checkpoint  after 1 MiB and 512 MiB of writes      | each other
//!   import      a root file system                     | mke2fs -d
//!   exec        200 round trips, p50 and p95           | fork and exec inside the guest
//!   branch      fork, pause, resume, stop, start, rm   |
//! ```
//!
//! What is compared is interleaved, medians and ratios are printed, and nothing is judged: a machine
//! that others use too moves both sides. `cargo run --release -p cowslip-benches -- [NAME…]`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod branch;
mod checkpoint;
mod exec;
mod floor;
mod images;
mod import;
mod lab;
mod run;
mod session;
#[allow(dead_code, reason = "shared with the other programs")]
mod table;

use std::process::ExitCode;
use std::sync::Arc;

use lab::Lab;

/// What stopped a benchmark, in words.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Bench = fn(&Lab) -> Result<(), Failure>;

const BENCHES: &[(&str, Bench)] = &[
    ("run", run::bench),
    ("exec", exec::bench),
    ("checkpoint", checkpoint::bench),
    ("branch", branch::bench),
    ("import", import::bench),
    ("images", images::bench),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| BENCHES.iter().all(|(known, _)| known != name))
    {
        let known: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        eprintln!(
            "there is no benchmark \"{unknown}\": there are {}",
            known.join(", ")
        );
        return ExitCode::FAILURE;
    }
    match measure(wanted) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(wanted: Vec<String>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let lab = Arc::new(Lab::prepare()?);
    let worker = Arc::clone(&lab);
    let outcome = runtime.block_on(async {
        let work = tokio::task::spawn_blocking(move || {
            for (name, bench) in BENCHES {
                if wanted.is_empty() || wanted.iter().any(|one| one == name) {
                    println!("\n== {name} ==");
                    bench(&worker)?;
                }
            }
            Ok::<_, Failure>(())
        });
        tokio::select! {
            done = work => done.map_err(Failure::from).flatten().map(|()| ExitCode::SUCCESS),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                Ok(ExitCode::from(130))
            }
        }
    });
    // Work that was interrupted is not waited for: the sandboxes it uses are taken from it.
    runtime.shutdown_background();
    lab.clean();
    outcome
}
