//! Benchmarks of disks on device-mapper, beside what they stand on, in one run on one machine.
//!
//! ```text
//!   devices  a copy-on-write device made and removed | losetup and dmsetup; the bare ioctls
//!   freeze   after 1 MiB, 64 MiB and 1 GiB written   | each other
//!   flatten  1 %, 10 % and 50 % changed              | dd of the device
//!   fio      first write, rewrite, read by stack     | the bare loop device
//! ```
//!
//! They need root and device-mapper and change the host: `make bench-disk` runs them in the test VM.
//! That is emulated on most hosts, so only ratios mean something. `cowslip-bench-disk [NAME…]`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod commands;
mod devices;
mod fio;
mod flatten;
mod freeze;
mod lab;
mod stack;
#[path = "../table.rs"]
#[allow(dead_code, reason = "shared with the other program")]
mod table;

use std::process::ExitCode;

/// What stopped a benchmark, in words.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Bench = fn() -> Result<(), Failure>;

const BENCHES: &[(&str, Bench)] = &[
    ("devices", devices::bench),
    ("freeze", freeze::bench),
    ("flatten", flatten::bench),
    ("fio", fio::bench),
];

fn main() -> ExitCode {
    if std::env::var_os("COWSLIP_IN_TEST_VM").is_none() {
        eprintln!("this changes its host: run \"make bench-disk\", which uses the test VM");
        return ExitCode::FAILURE;
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &String| BENCHES.iter().any(|(known, _)| known == name);
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        let known: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        eprintln!("there is no benchmark \"{unknown}\": there are {known}");
        return ExitCode::FAILURE;
    }
    match std::fs::read_to_string("/proc/version") {
        Ok(version) => println!("{}", version.trim()),
        Err(error) => eprintln!("the kernel's version: {error}"),
    }
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            println!("\n== {name} ==");
            if let Err(failure) = bench() {
                eprintln!("{name}: {failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
