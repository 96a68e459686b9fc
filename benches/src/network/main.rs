//! Benchmarks of sandboxes' networks, beside what they stand on, in one run on one machine.
//!
//! ```text
//!   slots       a network made and removed            | ip and nft, a command each and in batches
//!   warm        a start's share of it, of a spare     | made for the start
//!   throughput  through a sandbox's network           | a bare tap, a bare cable
//!   names       a question to the engine's resolver   | to the name server that it asks
//! ```
//!
//! They need root. Two namespaces stand for the host and the internet, and go with the program: all is measured in there.
//! `make bench-network`, or `cowslip-bench-network [NAME…]`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../disk/commands.rs"]
#[allow(dead_code, reason = "shared with the other program")]
mod commands;
mod guest;
mod names;
mod room;
mod slots;
#[path = "../table.rs"]
#[allow(dead_code, reason = "shared with the other programs")]
mod table;
mod throughput;
mod warm;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;

use cowslip_e2e::{End, Lab};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What stopped a benchmark, in words.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Bench = fn(&Lab) -> Result<(), Failure>;

const BENCHES: &[(&str, Bench)] = &[
    ("slots", slots::bench),
    ("warm", warm::bench),
    ("throughput", throughput::bench),
    ("names", names::bench),
];

/// How often something is measured: `usual`, or what `COWSLIP_TEST_BENCH_ROUNDS` says.
fn rounds(usual: usize) -> Result<usize, Failure> {
    match std::env::var("COWSLIP_TEST_BENCH_ROUNDS") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(usual),
    }
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &String| BENCHES.iter().any(|(known, _)| known == name);
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        let known: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        eprintln!("there is no benchmark \"{unknown}\": there are {known}");
        return ExitCode::FAILURE;
    }
    let Some(lab) = Lab::new() else {
        return ExitCode::SUCCESS;
    };
    match measure(&lab, &wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(lab: &Lab, wanted: &[String]) -> Result<(), Failure> {
    // This thread is the process' first, whose namespace is where links of new networks end; and whatever it starts is
    // in there too.
    let host = File::open(lab.path(End::Host))?;
    move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Network))?;
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            println!("\n== {name} ==");
            bench(lab).map_err(|failure| format!("{name}: {failure}"))?;
        }
    }
    Ok(())
}
