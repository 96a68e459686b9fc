//! Development tasks, run as `cargo xtask TASK`.
//!
//! What a build needs beyond cargo lives here rather than in shell: it is checked by the same
//! compiler and the same tests. Nothing here is part of what a user installs.

// A task's product goes to stdout (a path, say), what it is doing to stderr.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod guest_kernel;
mod layers;
mod vm;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the purpose-built guest kernel, or find it in the cache; prints its directory
    GuestKernel(GuestKernel),
    /// Run commands or the privileged tests in a virtual machine that has device-mapper
    Vm(vm::Vm),
    /// Check that dependencies, lints and unsafe code keep to the layers of the design
    CheckLayers,
}

#[derive(Args)]
struct GuestKernel {
    /// The kernel's source archive [default: the newest linux-source-6.12 in /usr/src]
    #[arg(long, env = "COWSLIP_KERNEL_SOURCE", value_name = "TAR")]
    source: Option<PathBuf>,
    /// Only tell whether it is in the cache: prints its directory, or exits with 1
    #[arg(long)]
    cached: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::GuestKernel(args) => guest_kernel::run(args.source, args.cached),
        Task::Vm(args) => vm::run(args),
        Task::CheckLayers => layers::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  caused by: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// The outcome of a task: its exit code, or the error to print.
type Outcome = Result<ExitCode, Box<dyn Error>>;

/// The root of the workspace.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}
