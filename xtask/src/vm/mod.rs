//! `cargo xtask vm`: a virtual machine with the kernel features that this host may lack.
//!
//! ```text
//!  root.ext4  (cached)   Debian with QEMU, dmsetup and fio        ─ written to an overlay that goes
//!  initramfs  (cached)   busybox and the modules that find a disk
//!  cargo.ext4 (each run) what cargo built, and the guests' assets, under the paths they have here
//!                                 │
//!    QEMU (KVM where a guest boots on it, else emulation with nested virtualisation)
//!                                 │
//!    hvc0: the command's input and output     ttyS0: console.log     hvc port: its exit status
//! ```
//!
//! Every run ends: by its command's end, by a bound, or by a signal to this process; QEMU ends with
//! it. The kernel's console is kept where the command failed.

mod initramfs;
mod machine;
mod payload;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::Outcome;

/// What a run may take at most, in seconds, unless told otherwise.
const BOUND: u64 = 25 * 60;

#[derive(Args)]
pub(crate) struct Vm {
    /// Memory of the machine, in MiB
    #[arg(long, default_value_t = 6144)]
    memory: u32,
    /// Processors of the machine
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Seconds after which the machine is ended
    #[arg(long, default_value_t = BOUND)]
    bound: u64,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run one command in it; its exit status is this one's
    Run {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Run a shell in it, on this terminal
    Shell,
    /// Run the privileged tests in it; arguments go to the test runner
    Test {
        /// Arguments of the runner: filters, mostly
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// What was wrong with the machine or its parts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error(
        "the variable {0} is not set: source the file that scripts/test-assets prints, as scripts/test does"
    )]
    NoAsset(&'static str),
    #[error("{operation} \"{path}\"")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("run {program}: is it installed? scripts/setup does that")]
    Start {
        program: String,
        source: std::io::Error,
    },
    #[error("{program} failed: {output}")]
    Failed { program: String, output: String },
    #[error("no module \"{name}\" below \"{tree}\": the kernel's package is not the right one")]
    NoModule { name: String, tree: PathBuf },
    #[error(
        "the machine ended before its command did{why}; its console is in \"{}\"", console.display()
    )]
    Ended { why: String, console: PathBuf },
}

impl VmError {
    pub(crate) fn file(
        operation: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }
}

/// The path in a variable that scripts/test-assets sets.
fn asset(name: &'static str) -> Result<PathBuf, VmError> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or(VmError::NoAsset(name))
}

pub(crate) fn run(vm: Vm) -> Outcome {
    let machine = machine::Machine {
        memory: vm.memory,
        cpus: vm.cpus,
        bound: Duration::from_secs(vm.bound),
    };
    let code = match vm.what {
        What::Run { command } => machine.run(&command, false)?,
        What::Shell => machine.run(&["bash".to_owned(), "-l".to_owned()], true)?,
        What::Test { arguments } => suite::run(&machine, &arguments)?,
    };
    Ok(ExitCode::from(code))
}
