//! Benchmarks of sandboxes in Firecracker, beside the same calls of Firecracker made by hand, in one run.
//!
//! ```text
//!   create   new sandbox, boot, first exec           | a bare Firecracker on a ready device
//!   fork     checkpoint, restore a child, first exec | the same calls, the child's device ready
//!   flat     three creates and ten forks at once     | one
//!   memory   the engine at 0 and 20 sandboxes; pages that ten forks share
//! ```
//!
//! They need root, device-mapper, KVM and Firecracker: `make bench-firecracker` runs them in the test VM. That is
//! emulated on most hosts, so only ratios mean something. `cowslip-bench-firecracker [NAME…]`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bare;
mod create;
mod flat;
mod fork;
mod http;
mod lab;
mod memory;
#[path = "../session.rs"]
#[allow(dead_code, reason = "shared with the other programs")]
mod session;
#[path = "../table.rs"]
#[allow(dead_code, reason = "shared with the other programs")]
mod table;

use std::process::ExitCode;

/// What stopped a benchmark, in words.
type Failure = Box<dyn std::error::Error + Send + Sync>;

const BENCHES: &[&str] = &["create", "fork", "flat", "memory"];

fn main() -> ExitCode {
    if std::env::var_os("COWSLIP_IN_TEST_VM").is_none() {
        eprintln!("this changes its host: run \"make bench-firecracker\", which uses the test VM");
        return ExitCode::FAILURE;
    }
    if std::env::var_os("COWSLIP_FIRECRACKER").is_none()
        || std::env::var_os("COWSLIP_JAILER").is_none()
    {
        eprintln!(
            "SKIPPED: COWSLIP_FIRECRACKER and COWSLIP_JAILER name no programs; no package has them"
        );
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| !BENCHES.contains(&name.as_str())) {
        eprintln!(
            "there is no benchmark \"{unknown}\": there are {}",
            BENCHES.join(", ")
        );
        return ExitCode::FAILURE;
    }
    let measure = async {
        for name in BENCHES {
            if !wanted.is_empty() && !wanted.iter().any(|one| one == name) {
                continue;
            }
            println!("\n== {name} ==");
            match *name {
                "create" => create::bench().await?,
                "fork" => fork::bench().await?,
                "flat" => flat::bench().await?,
                _ => memory::bench().await?,
            }
        }
        Ok::<_, Failure>(())
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(measure) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
