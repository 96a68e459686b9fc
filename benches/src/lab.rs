//! Where benchmarks are made: a state directory of their own, an engine, a template and kernels.
//!
//! Whatever is started here has a TTL, and the engine ends when nobody asks it any more: a benchmark
//! that is killed leaves no guest behind, only its temporary directory.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::Failure;

/// The template's name.
pub(crate) const TEMPLATE: &str = "base";

/// A guest kernel to measure with.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// Its name in the engine.
    pub(crate) name: &'static str,
    /// What it is, for tables.
    pub(crate) what: &'static str,
    /// Where the engine keeps it.
    pub(crate) directory: PathBuf,
}

/// Everything that is set up once.
#[derive(Debug)]
pub(crate) struct Lab {
    scratch: TempDir,
    program: PathBuf,
    rootfs: PathBuf,
    archive: Option<PathBuf>,
    kernels: Vec<Kernel>,
}

/// What a command printed, and how long it took.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) took: Duration,
}

impl Lab {
    /// Starts an engine and imports what is needed; says on standard error what it does.
    pub(crate) fn prepare() -> Result<Self, Failure> {
        let program = program()?;
        let rootfs = path_of("COWSLIP_TEST_ROOTFS").ok_or(
            "COWSLIP_TEST_ROOTFS names no root file system: \". $(scripts/test-assets)\", or \"make bench\"",
        )?;
        let mut lab = Self {
            scratch: tempfile::Builder::new()
                .prefix("cowslip-bench-")
                .tempdir()?,
            program,
            rootfs,
            archive: path_of("COWSLIP_TEST_ROOTFS_TAR"),
            kernels: Vec::new(),
        };
        if let Err(failure) = lab.stock() {
            lab.clean();
            return Err(failure);
        }
        Ok(lab)
    }

    fn stock(&mut self) -> Result<(), Failure> {
        eprintln!("setting up in \"{}\"", self.scratch.path().display());
        self.cowslip(["info"])?;
        let rootfs = self.rootfs.clone();
        self.cowslip([
            OsStr::new("template"),
            OsStr::new("import"),
            OsStr::new(TEMPLATE),
            rootfs.as_os_str(),
        ])?;
        if let Some(image) = path_of("COWSLIP_TEST_GUEST_BZIMAGE") {
            self.add_kernel("guest", "purpose-built kernel", &image, None)?;
        }
        if let Some(image) = path_of("COWSLIP_TEST_DEBIAN_VMLINUZ") {
            let modules = path_of("COWSLIP_TEST_DEBIAN_MODULES");
            self.add_kernel(
                "debian",
                "distribution's kernel",
                &image,
                modules.as_deref(),
            )?;
        }
        if self.kernels.is_empty() {
            return Err(
                "neither COWSLIP_TEST_GUEST_BZIMAGE nor COWSLIP_TEST_DEBIAN_VMLINUZ names a kernel"
                    .into(),
            );
        }
        Ok(())
    }

    fn add_kernel(
        &mut self,
        name: &'static str,
        what: &'static str,
        image: &Path,
        modules: Option<&Path>,
    ) -> Result<(), Failure> {
        let mut words = vec![
            OsStr::new("kernel"),
            OsStr::new("import"),
            OsStr::new(name),
            image.as_os_str(),
        ];
        if let Some(modules) = modules {
            words.extend([OsStr::new("--modules"), modules.as_os_str()]);
        }
        self.cowslip(words)?;
        let id = text(&self.json(["kernel", "inspect", name])?, "id")?;
        self.kernels.push(Kernel {
            name,
            what,
            directory: self.state().join("kernels").join(id),
        });
        Ok(())
    }

    /// The kernels, the one that other benchmarks use first.
    pub(crate) fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// The kernel that benchmarks use which do not compare kernels.
    pub(crate) fn kernel(&self) -> &'static str {
        self.kernels.first().map_or("", |kernel| kernel.name)
    }

    /// The root file system's directory.
    pub(crate) fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// The same as a tar, if there is one.
    pub(crate) fn archive(&self) -> Option<&Path> {
        self.archive.as_deref()
    }

    /// A directory for files of a benchmark.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn state(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    fn run_directory(&self) -> PathBuf {
        self.scratch.path().join("run")
    }

    /// The engine's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_directory().join("cowslip.sock")
    }

    /// The template's image.
    pub(crate) fn image(&self) -> Result<PathBuf, Failure> {
        let id = text(&self.json(["template", "inspect", TEMPLATE])?, "id")?;
        Ok(self.state().join("templates").join(id).join("image.ext4"))
    }

    /// The command line, ready for a verb.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_remove("COWSLIP_CONFIG")
            .env("COWSLIP_STATE_DIR", self.state())
            .env("COWSLIP_RUN_DIR", self.run_directory())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end; one that fails ends the benchmark.
    pub(crate) fn cowslip<W: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = W>,
    ) -> Result<Ran, Failure> {
        let mut command = self.command();
        command.args(words);
        complete(&mut command)
    }

    /// The same, reading what it prints as JSON.
    pub(crate) fn json<W: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = W>,
    ) -> Result<Value, Failure> {
        let mut command = self.command();
        command.arg("--json").args(words);
        Ok(serde_json::from_str(&complete(&mut command)?.stdout)?)
    }

    /// Starts a sandbox that only runs.
    pub(crate) fn sandbox(&self, name: &str, more: &[&str]) -> Result<(), Failure> {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "--kernel",
            self.kernel(),
            "--ttl",
            "30m",
        ];
        let words = words.iter().chain(more).chain([&TEMPLATE]);
        self.cowslip(words).map(drop)
    }

    /// Removes a sandbox, running or not; gives back how long that took.
    pub(crate) fn remove(&self, name: &str) -> Result<Duration, Failure> {
        Ok(self.cowslip(["rm", "--force", name])?.took)
    }

    /// Removes what is left and ends the engine. What fails is said: nobody else would.
    pub(crate) fn clean(&self) {
        if let Err(failure) = self.try_clean() {
            eprintln!(
                "clean up in \"{}\": {failure}",
                self.scratch.path().display()
            );
        }
    }

    fn try_clean(&self) -> Result<(), Failure> {
        let left = self.cowslip(["ls", "--quiet"])?.stdout;
        for id in left.split_whitespace() {
            self.remove(id)?;
        }
        self.cowslip(["serve", "--stop"])?;
        Ok(())
    }
}

/// Runs a command to its end, which must be a good one.
pub(crate) fn complete(command: &mut Command) -> Result<Ran, Failure> {
    let begun = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run {:?}: {error}", command.get_program()))?;
    let took = begun.elapsed();
    if !output.status.success() {
        return Err(format!(
            "{:?} {:?} failed ({}): {}",
            command.get_program(),
            command.get_args().collect::<Vec<_>>(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into());
    }
    Ok(Ran {
        stdout: String::from_utf8(output.stdout)?,
        took,
    })
}

/// A text field of an object.
pub(crate) fn text(value: &Value, field: &str) -> Result<String, Failure> {
    let object = value
        .as_array()
        .and_then(|list| list.first())
        .unwrap_or(value);
    Ok(object[field]
        .as_str()
        .ok_or_else(|| format!("the answer has no \"{field}\": {value}"))?
        .to_owned())
}

/// A number field of an object.
pub(crate) fn figure(value: &Value, field: &str) -> Result<f64, Failure> {
    let object = value
        .as_array()
        .and_then(|list| list.first())
        .unwrap_or(value);
    Ok(object[field]
        .as_f64()
        .ok_or_else(|| format!("the answer has no \"{field}\": {value}"))?)
}

fn path_of(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// The command line that was built with this program, or the one that `COWSLIP_BENCH_PROGRAM` names.
fn program() -> Result<PathBuf, Failure> {
    let program = match path_of("COWSLIP_BENCH_PROGRAM") {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("cowslip"),
    };
    if !program.is_file() {
        return Err(format!("there is no \"{}\": run \"make build\"", program.display()).into());
    }
    Ok(program)
}
