//! One run of the machine: its disks, its environment, and what became of its command.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::accelerator::Accelerator;
use super::assets::{self, Assets};
use super::qemu::{Boot, Disk, furnish};
use super::watch::{self, Bounds, Ending};
use super::{VmError, disk, initramfs, target, tree};

/// Machines that are tried for one command where emulation itself fails.
const ATTEMPTS: u32 = 3;
/// How long one may tell nothing: it tells that it is up after ten seconds, and every ten that it still is.
const SILENCE: Duration = Duration::from_secs(180);
/// How a kernel begins to tell of its fault.
const FAULTS: [&str; 5] = [
    "BUG: ",
    "Oops: ",
    "Kernel panic - ",
    "PANIC: ",
    "general protection fault",
];
/// Who was running: the process of a monitor, one of its threads, or a call to run a vCPU.
const IN_VCPU: [&str; 5] = [
    " Comm: qemu-system",
    " Comm: firecracker",
    " Comm: fc_vcpu",
    " kvm_vcpu_ioctl+",
    " svm_vcpu_run+",
];
/// Lines of the console that an error shows.
const TAIL: usize = 15;
/// Runs on the machine's root.
const START: &str = include_str!("guest/start");
/// Variables that go in as they are here.
const PASSED: [&str; 5] = [
    "COWSLIP_TEST_",
    "COWSLIP_MATRIX_",
    "COWSLIP_SOAK_",
    "COWSLIP_LOG",
    "RUST_BACKTRACE",
];

/// How large it is and how long it may run.
pub(super) struct Machine {
    /// In MiB.
    pub(super) memory: u32,
    pub(super) cpus: u32,
    pub(super) bound: Duration,
}

/// What it does.
pub(super) struct Job {
    pub(super) command: Vec<String>,
    /// Files and directories that it finds under the same paths, read-only.
    pub(super) places: Vec<PathBuf>,
    pub(super) variables: Vec<(String, String)>,
    /// The directory with the programs under test.
    pub(super) programs: Option<PathBuf>,
    pub(super) interactive: bool,
}

impl Job {
    /// A command, with the programs that are built.
    pub(super) fn command(command: Vec<String>) -> Result<Self, VmError> {
        Ok(Self {
            command,
            places: tree::workspace()?,
            variables: Vec::new(),
            programs: assets::programs(false)?,
            interactive: false,
        })
    }

    /// A shell on our terminal.
    pub(super) fn shell() -> Result<Self, VmError> {
        let job = Self::command(vec!["bash".to_owned(), "-l".to_owned()])?;
        Ok(Self {
            interactive: true,
            ..job
        })
    }
}

/// A directory of one run, which goes with this value.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self, VmError> {
        let all = target().join("vm");
        // Those of processes that were killed.
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(pid) = name.strip_prefix("run-")
                && !Path::new("/proc").join(pid).exists()
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let own = all.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&own).map_err(VmError::file("make", &own))?;
        Ok(Self(own))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays is removed by the next run.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Machine {
    /// Boots it, runs the command and gives its exit status. Emulated nested virtualisation breaks the
    /// machine's kernel now and then (seen with QEMU 7.2: exceptions without end on the way out of a guest), and
    /// all of its processors may spin without end, in its boot or later: then the command is run again, in a new
    /// machine, and that is said.
    pub(super) fn run(&self, job: &Job) -> Result<u8, VmError> {
        let mut attempt = 1;
        loop {
            match self.once(job) {
                Err(VmError::Ended {
                    broken: true,
                    console,
                    ..
                }) if attempt < ATTEMPTS && !job.interactive => eprintln!(
                    "vm: the machine stood still, or its kernel broke in the vCPU of a guest: faults of \
                     emulation; its console is in \"{}\"; run again ({} of {ATTEMPTS})",
                    console.display(),
                    attempt + 1
                ),
                other => return other,
            }
            attempt += 1;
        }
    }

    fn once(&self, job: &Job) -> Result<u8, VmError> {
        let begun = Instant::now();
        let assets = Assets::find()?;
        let root = assets.path("COWSLIP_TEST_VM_ROOT")?;
        let modules = assets.path("COWSLIP_TEST_VM_MODULES")?;
        let kernel = assets.path("COWSLIP_TEST_DEBIAN_VMLINUZ")?;
        // Beside the root, whose directory is named by what it was made from.
        let cache = root.parent().and_then(Path::parent).unwrap_or(root);
        let place = Place::new()?;
        let initrd = initramfs::build(modules, &place.0)?;
        let accelerator = Accelerator::choose(cache, &place.0, kernel, &initrd)?;

        let guests = assets.guests()?;
        let monitors = assets::monitors()?;
        let environment = environment(job, guests.iter().chain(&monitors));
        let guests = guests.into_iter().map(|(_, path)| path).collect();
        let texts = [
            ("start", START.to_owned()),
            ("modules", initramfs::LATER.join(" ")),
            ("environment", environment),
            ("command", command(&job.command)),
        ];
        let places = job.places.iter().chain(&job.programs);
        let places = places.chain(monitors.iter().map(|(_, path)| path));
        let places = tree::outermost(places.cloned().collect());
        let disks = [
            Disk::Throwaway(root.to_owned()),
            Disk::ReadOnly(disk::assets(cache, guests)?),
            Disk::ReadOnly(disk::with_places(&place.0, &places, &texts)?),
            Disk::Writable(disk::scratch(&place.0)?),
        ];
        let console = place.0.join("console.log");
        let status = place.0.join("status");
        let boot = Boot {
            accelerator,
            memory: self.memory,
            cpus: self.cpus,
            kernel,
            initrd: &initrd,
            words: "",
            console: &console,
            status: &status,
        };
        let mut qemu = boot.command();
        furnish(&mut qemu, &disks);
        if !job.interactive {
            qemu.stdin(Stdio::null());
        }
        let mut code: Option<u8> = None;
        let bounds = Bounds {
            whole: self.bound,
            silence: SILENCE,
        };
        let ending = watch::run(qemu, &status, bounds, |line| {
            if let Some(up) = line.strip_prefix("up ") {
                let whole = begun.elapsed().as_secs_f32();
                eprintln!(
                    "vm: the command started after {whole:.1} s, {up} s of it in the machine"
                );
            } else if let Some(told) = line.strip_prefix("status ") {
                code = told.parse().ok();
            }
        })?;
        let emulated = accelerator == Accelerator::Tcg;
        conclude(code, &ending, self.bound, &console).map_err(|error| match error {
            VmError::Ended {
                why,
                console,
                tail,
                broken,
            } => VmError::Ended {
                why,
                console,
                tail,
                broken: broken && emulated,
            },
            other => other,
        })
    }
}

/// The exit status, or why there is none.
fn conclude(
    code: Option<u8>,
    ending: &Ending,
    bound: Duration,
    console: &Path,
) -> Result<u8, VmError> {
    if code == Some(0) {
        return Ok(0);
    }
    let kept = keep(console);
    if let Some(code) = code {
        eprintln!("vm: the kernel's console is in \"{}\"", kept.display());
        return Ok(code);
    }
    let why = match ending {
        Ending::Late => format!("its time of {} s was up", bound.as_secs()),
        Ending::Silent => format!("it stood still for {} s", SILENCE.as_secs()),
        Ending::Signal(signal) => {
            eprintln!(
                "vm: ended by a signal; the kernel's console is in \"{}\"",
                kept.display()
            );
            // As a shell would say it.
            return Ok(u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX));
        }
        Ending::Exit(status) => format!("QEMU ended ({status})"),
    };
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    Err(VmError::Ended {
        why,
        console: kept,
        tail,
        broken: *ending == Ending::Silent || broke_in_vcpu(&text),
    })
}

/// Whether a kernel's console ends with a fault in a vCPU: in the process of a monitor, or below its call.
fn broke_in_vcpu(console: &str) -> bool {
    let begins = |line: &str| FAULTS.iter().any(|fault| line.contains(fault));
    let mut fault = console.lines().skip_while(|line| !begins(line));
    fault.any(|line| IN_VCPU.iter().any(|sign| line.contains(sign)))
}

/// Keeps the console of a run that failed, beside those of others that run now.
fn keep(console: &Path) -> PathBuf {
    let directory = target().join("vm");
    let kept = directory.join(format!("console-{}.log", std::process::id()));
    // Without it there is only less to read.
    let _ = fs::create_dir_all(&directory).and_then(|()| fs::copy(console, &kept));
    kept
}

/// The machine's environment, as a shell reads it.
fn environment<'a>(job: &Job, files: impl Iterator<Item = &'a (String, PathBuf)>) -> String {
    let mut all: Vec<(String, String)> = std::env::vars()
        .filter(|(name, _)| PASSED.iter().any(|passed| name.starts_with(passed)))
        .collect();
    all.extend(files.map(|(name, path)| (name.clone(), path.display().to_string())));
    let mut set = |name: &str, value: String| all.push((name.to_owned(), value));
    if let Some(programs) = &job.programs {
        let at = |name: &str| programs.join(name).display().to_string();
        set("COWSLIP_TEST_BIN", at("cowslip"));
        set("COWSLIP_TEST_AGENT", at("cowslip-agent"));
    }
    if std::io::stdout().is_terminal() {
        let term = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
        set("TERM", term);
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) {
            set(
                "VM_SIZE",
                format!("rows {} cols {}", size.ws_row, size.ws_col),
            );
        }
    }
    if job.interactive {
        set("VM_INTERACTIVE", "1".to_owned());
    }
    if let Ok(here) = std::env::current_dir() {
        set("VM_DIRECTORY", here.display().to_string());
    }
    all.extend(job.variables.iter().cloned());
    let mut text: String = all
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
        .collect();
    if let Some(programs) = &job.programs {
        let programs = quoted(&programs.display().to_string());
        text.push_str(&format!("PATH={programs}:$PATH\n"));
    }
    text
}

/// The command as a script.
fn command(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("exec {}\n", words.join(" "))
}

/// A word that a shell takes as it is.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_the_very_words() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "*"].map(str::to_owned);
        let output = std::process::Command::new("sh")
            .args(["-c", &command(&words)])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "a b|it's|$HOME||*|"
        );
    }

    #[test]
    fn a_fault_in_a_vcpu_is_told_from_others() {
        let console = |process: &str| {
            format!(
                "up\n[ 5.0] BUG: TASK stack guard page was hit\n[ 5.0] CPU: 0 PID: 9 Comm: {process} Not\n"
            )
        };
        assert!(broke_in_vcpu(&console("qemu-system-x86")));
        assert!(!broke_in_vcpu(&console("kworker/0:1")));
        let trace = "[ 5.0]  ? kvm_vcpu_ioctl+0x1b/0x670 [kvm]\n";
        assert!(broke_in_vcpu(&format!(
            "[ 5.0] Kernel panic - not syncing: Machine halted.\n{trace}"
        )));
        assert!(!broke_in_vcpu(trace), "a trace, but no fault");
        assert!(!broke_in_vcpu(
            "[ 5.0] CPU: 0 PID: 9 Comm: qemu-system-x86\n"
        ));
    }

    #[test]
    fn no_status_is_an_error_that_shows_the_console() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        fs::write(&console, "one\nKernel panic\n").unwrap();
        let bound = Duration::from_secs(9);
        let ending = Ending::Late;
        let error = conclude(None, &ending, bound, &console).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("9 s") && text.ends_with("Kernel panic"),
            "{text}"
        );
        assert_eq!(conclude(Some(3), &ending, bound, &console).unwrap(), 3);
    }
}
