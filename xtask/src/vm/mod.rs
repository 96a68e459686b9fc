//! `cargo xtask vm`: a virtual machine with the kernel features that this host may lack.
//!
//! ```text
//!  root      cached     Debian with QEMU, dmsetup and fio          ─ written to an overlay that goes
//!  assets    cached     guest kernels and root file system         ┐ read-only, under the paths
//!  payload   each run   programs, tests, environment, the command  ┘ that they have here
//!  scratch   each run   an empty disk, at /tmp
//!                                 │
//!    QEMU (KVM where a guest boots on it, else emulation with nested virtualisation)
//!                                 │
//!    hvc0: the command's input and output    ttyS0: console.log    ttyS1: its start and exit status
//! ```
//!
//! Every run ends: by its command's end, by a bound, or by a signal to this process; QEMU ends with
//! it. The kernel's console is kept where the command failed. `docs/test-vm.md` says how to use it.

mod accelerator;
mod assets;
mod disk;
mod initramfs;
mod machine;
mod nextest;
mod qemu;
mod suite;
mod tree;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::Outcome;

/// What a run may take at most, in seconds, unless told otherwise.
const BOUND: u64 = 25 * 60;
/// The same where a person sits in it.
const SHELL_BOUND: u64 = 12 * 60 * 60;

/// The variable that names the state directory of an engine that is the machine's first process.
const ENGINE: (&str, &str) = ("COWSLIP_TEST_ENGINE", "/var/lib/cowslip");

#[derive(Args)]
pub(crate) struct Vm {
    /// Memory of the machine, in MiB
    #[arg(long, default_value_t = 6144, value_name = "MIB")]
    memory: u32,
    /// Processors of the machine
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpus: u32,
    /// The machine is ended after so many seconds [default: 1500; of a shell, 43200]
    #[arg(long, value_name = "SECONDS")]
    bound: Option<u64>,
    /// The machine's first process while the command runs
    #[arg(long, value_enum, default_value_t = Init::Script, value_name = "WHICH")]
    init: Init,
    #[command(subcommand)]
    what: What,
}

/// What the machine's first process is while the command runs.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Init {
    /// The script that runs the command
    Script,
    /// An engine of its own; COWSLIP_TEST_ENGINE names its state directory
    Engine,
}

#[derive(Subcommand)]
enum What {
    /// Run one command in it; its exit status is this one's
    Run {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a shell in it, on this terminal
    Shell,
    /// Run the privileged tests in it, or those of the packages named with "-p"
    Test {
        /// Arguments of the test runner: filters, mostly
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// What was wrong with the machine or its parts.
#[derive(Debug, thiserror::Error)]
enum VmError {
    #[error("scripts/test-assets did not name {0}: run it, and see what it says")]
    NoAsset(&'static str),
    #[error("{name} is \"{}\", which is not the absolute path of a file", path.display())]
    NoMonitor { name: &'static str, path: PathBuf },
    #[error("cannot {operation} \"{}\"", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run \"{program}\": is it installed? scripts/setup does that")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("\"{program}\" failed: {output}")]
    Failed { program: String, output: String },
    #[error(
        "no module \"{name}\" below \"{}\": remove that directory from the cache and run scripts/test-assets", tree.display()
    )]
    NoModule { name: String, tree: PathBuf },
    #[error("COWSLIP_VM_ACCEL is \"{0}\": it may be \"kvm\" or \"tcg\"")]
    Accelerator(String),
    #[error("cannot wait for the machine")]
    Wait(#[source] io::Error),
    #[error(
        "the machine ended before its command did: {why}; its console is in \"{}\", and ends:\n{tail}", console.display()
    )]
    Ended {
        why: String,
        console: PathBuf,
        tail: String,
        /// Whether an emulated machine broke by itself: in its boot, or in a vCPU of a guest inside.
        broken: bool,
    },
}

impl VmError {
    /// The error of an operation on a file.
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }
}

/// Boots a machine and does in it what is asked.
pub(crate) fn run(vm: Vm) -> Outcome {
    let usual = match vm.what {
        What::Shell => SHELL_BOUND,
        What::Run { .. } | What::Test { .. } => BOUND,
    };
    let machine = machine::Machine {
        memory: vm.memory,
        cpus: vm.cpus,
        bound: Duration::from_secs(vm.bound.unwrap_or(usual)),
    };
    let mut job = match vm.what {
        What::Run { command } => machine::Job::command(command)?,
        What::Shell => machine::Job::shell()?,
        What::Test { arguments } => suite::job(&arguments)?,
    };
    if vm.init == Init::Engine {
        let (name, place) = ENGINE;
        job.variables.push((name.to_owned(), place.to_owned()));
    }
    Ok(ExitCode::from(machine.run(&job)?))
}

/// Where cargo builds.
fn target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = chosen.unwrap_or_else(|| crate::root().join("target"));
    std::path::absolute(&target).unwrap_or(target)
}

/// Runs a program that must succeed; gives its standard output.
fn output(command: &mut Command) -> Result<Vec<u8>, VmError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| VmError::Start {
        program: program.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(VmError::Failed {
        program,
        output: if said.is_empty() {
            output.status.to_string()
        } else {
            said
        },
    })
}
