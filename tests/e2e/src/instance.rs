//! One state directory with the program under test: made for one test, gone after it, and searched
//! for survivors.

mod circumstances;
mod ending;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use cowslip_model::api::{DoctorReport, Event, Info, Sandbox};
use rustix::process::Pid;
use tempfile::TempDir;

use crate::Mounted;
use crate::archive::box_tar;
use crate::assets::{self, Kernel};
use crate::call::{Call, Running};
use crate::changes::Changes;
use crate::survivors;

/// A storage backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Layers that are shared: qcow2 overlays, or what `COWSLIP_TEST_BACKEND` names (the test VM says
    /// "dm"), so that every test runs on every such backend.
    Qcow2,
    /// Whole copies.
    Copy,
}

/// What an instance is like.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its storage backend.
    pub backend: Backend,
    /// Run everything as this user, with directories by the XDG rules; none: as whoever runs the
    /// tests, with a state directory named in the environment.
    pub user: Option<u32>,
    /// More lines for the configuration's `[machine]`.
    pub machine: String,
    /// More lines for its `[storage]`.
    pub storage: String,
    /// More lines for its `[network]`.
    pub network: String,
    /// The network namespace that everything runs in; none: the tests' own.
    pub netns: Option<PathBuf>,
    /// The state directory is a file system of its own, in memory and of this size ("48m"). Only root can have one.
    pub disk: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            backend: Backend::Qcow2,
            user: None,
            machine: String::new(),
            storage: String::new(),
            network: String::new(),
            netns: None,
            disk: None,
        }
    }
}

/// A state directory, and the program that works on it.
pub struct Instance {
    setup: Setup,
    /// Goes before the directory that it is in.
    disk: Option<Mounted>,
    base: TempDir,
    state: PathBuf,
    run: PathBuf,
    /// Its engine was there before, and stays.
    shared: bool,
    /// Variables of its commands, and so of the engines that they start.
    environment: Vec<(String, String)>,
}

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

fn configuration(setup: &Setup) -> String {
    // An ordinary user has neither device-mapper nor a jail, and may not open KVM.
    let is_root = setup.user.is_none();
    let backend = match setup.backend {
        Backend::Qcow2 if is_root => &preferred("COWSLIP_TEST_BACKEND", "qcow2"),
        Backend::Qcow2 => "qcow2",
        Backend::Copy => "copy",
    };
    let accelerator = if is_root {
        preferred("COWSLIP_TEST_ACCELERATOR", "tcg")
    } else {
        "tcg".to_owned()
    };
    let mut machine = setup.machine.clone();
    for (key, variable, else_) in MONITOR {
        if !machine.contains(key) {
            let value = std::env::var(variable).ok().filter(|_| is_root);
            let value = value.as_deref().unwrap_or(else_);
            machine.push_str(&format!("\n{key} = \"{value}\""));
        }
    }
    if std::env::var_os("COWSLIP_TEST_UNFILTERED").is_some() {
        machine.push_str("\nrequire_seccomp = false");
    }
    format!(
        "[storage]\nbackend = \"{backend}\"\n{}\n[machine]\naccelerator = \"{accelerator}\"\n{machine}\n[network]\n{}\n",
        setup.storage,
        network(setup)
    )
}

/// Engines at the same time must not have the same addresses; spares would count as left over.
fn network(setup: &Setup) -> String {
    static RANGES: AtomicU32 = AtomicU32::new(0);
    let mut lines = setup.network.clone();
    if !lines.contains("range =") {
        let number = RANGES.fetch_add(1, Ordering::Relaxed);
        let corner = std::process::id().wrapping_mul(7).wrapping_add(number) % 8192;
        let (second, third) = (128 + corner / 128, corner % 128 * 2);
        lines.push_str(&format!("\nrange = \"10.{second}.{third}.0/23\""));
    }
    if !lines.contains("warm =") {
        lines.push_str("\nwarm = 0");
    }
    lines
}

/// Keys of the configuration's `[machine]`, the variables that give them where a test does not, and what they are
/// else: the same on every host.
const MONITOR: [(&str, &str, &str); 2] = [
    ("vmm", "COWSLIP_TEST_VMM", "qemu"),
    ("isolation", "COWSLIP_TEST_ISOLATION", "jail"),
];

impl Instance {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    /// An empty one that is like this.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn with(setup: Setup) -> Self {
        // Short, so that socket paths fit.
        let base = tempfile::Builder::new()
            .prefix("cw-")
            .tempdir_in("/tmp")
            .unwrap();
        let at = |name: &str| base.path().join(name);
        fs::create_dir(at("bin")).unwrap();
        place(&assets::program(), &at("bin/cowslip"));
        place(&assets::agent(), &at("bin/cowslip-agent"));
        fs::write(at("config.toml"), configuration(&setup)).unwrap();
        let (state, run) = match setup.user {
            None => (at("s"), at("s/run")),
            Some(uid) => {
                fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
                for home in ["home", "runtime"] {
                    fs::create_dir(at(home)).unwrap();
                    chown(at(home), Some(uid), Some(uid)).unwrap();
                }
                (at("home/.local/state/cowslip"), at("runtime/cowslip"))
            }
        };
        let disk = setup.disk.as_deref().map(|size| {
            fs::create_dir(&state).unwrap();
            Mounted::new(&state, size)
        });
        Self {
            setup,
            disk,
            base,
            state,
            run,
            shared: false,
            environment: Vec::new(),
        }
    }

    /// Kills the engine and gives the next one other lines for the configuration's `[machine]`.
    ///
    /// # Panics
    /// When the configuration cannot be written.
    pub fn configure_machine(&self, lines: &str) {
        self.kill_engine();
        let setup = Setup {
            machine: lines.to_owned(),
            ..self.setup.clone()
        };
        fs::write(self.base.path().join("config.toml"), configuration(&setup)).unwrap();
    }

    /// The same with the template "box" (a shell and the usual tools) and this kernel.
    #[must_use]
    pub fn ready(setup: Setup, kernel: Kernel) -> Self {
        let instance = Self::with(setup);
        instance.import_kernel(kernel);
        instance.import("box", box_tar());
        instance
    }

    /// A directory for the test's own files, which every user can read.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.base.path()
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Gives the state directory's own file system another size.
    ///
    /// # Panics
    /// When it has none, or cannot be as small.
    pub fn resize_disk(&self, size: &str) {
        self.disk.as_ref().expect("a disk of its own").resize(size);
    }

    /// The run directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// A call of the program with these words.
    pub fn call<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Call {
        let mut command = self.command(self.base.path().join("bin/cowslip"));
        command.args(words);
        Call::new(command)
    }

    /// A call of another program, with the environment and the user of the instance.
    pub fn call_other(&self, program: impl AsRef<OsStr>) -> Call {
        Call::new(self.command(program))
    }

    /// A command with the environment and the user of the instance.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let base = self.base.path();
        let mut command = match &self.setup.netns {
            None => Command::new(program),
            Some(path) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path.display()));
                command.arg("--");
                if let Some(uid) = self.setup.user {
                    // Only root can enter it.
                    let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
                    command.arg("setpriv").args(ids).arg("--clear-groups");
                }
                command.arg(program);
                command
            }
        };
        for name in [
            "COWSLIP_RUN_DIR",
            "COWSLIP_LOG",
            "XDG_STATE_HOME",
            "XDG_RUNTIME_DIR",
        ] {
            command.env_remove(name);
        }
        command
            .current_dir(base)
            .env("COWSLIP_CONFIG", base.join("config.toml"))
            .env("RUST_BACKTRACE", "0")
            .envs(self.environment.iter().cloned());
        match self.setup.user {
            None => {
                command.env("COWSLIP_STATE_DIR", &self.state);
            }
            Some(uid) => {
                if self.setup.netns.is_none() {
                    command.uid(uid).gid(uid);
                }
                command
                    .env_remove("COWSLIP_STATE_DIR")
                    .env("HOME", base.join("home"))
                    .env("XDG_RUNTIME_DIR", base.join("runtime"));
            }
        }
        command
    }

    /// Words split at spaces, as a short way to say a call.
    pub fn say(&self, line: &str) -> Call {
        self.call(line.split_whitespace())
    }

    /// Runs a shell script in a sandbox.
    pub fn sh(&self, sandbox: &str, script: &str) -> Call {
        self.call(["exec", sandbox, "--", "sh", "-c", script])
    }

    /// Imports a tar as a template.
    pub fn import(&self, name: &str, tar: Vec<u8>) {
        let _ = self.call(["template", "import", name, "-"]).stdin(tar).ok();
    }

    /// Imports a kernel under its name.
    ///
    /// # Panics
    /// When its files cannot be read.
    pub fn import_kernel(&self, kernel: Kernel) {
        // Another user may not get to where the assets are.
        let image = self.base.path().join("vmlinuz");
        fs::copy(kernel.image(), &image).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
        let mut words = vec!["kernel".into(), "import".into(), kernel.name().into()];
        words.push(image.clone().into_os_string());
        if let Some(modules) = kernel.modules() {
            words.extend(["--modules".into(), modules.into_os_string()]);
        }
        let _ = self.call(words).ok();
        fs::remove_file(image).unwrap();
    }

    /// A sandbox as `inspect` shows it.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn sandbox(&self, name: &str) -> Sandbox {
        let mut found: Vec<Sandbox> = self.call(["inspect", name]).run().json();
        found.remove(0)
    }

    /// The names of all sandboxes, in order.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<String> {
        let all: Vec<Sandbox> = self.say("ls --all").json();
        let mut names: Vec<String> = all.iter().map(|one| one.name.to_string()).collect();
        names.sort();
        names
    }

    /// Follows the events from now on, a line of JSON each.
    ///
    /// # Panics
    /// When what there is cannot be read.
    #[must_use]
    pub fn follow_events(&self) -> Running {
        let so_far = self.say("events --json").ok();
        let last: Option<Event> = so_far
            .lines()
            .last()
            .map(|line| serde_json::from_str(line).unwrap());
        let after = last.map_or(0, |event| event.seq).to_string();
        self.say("events --follow --json --after")
            .arg(after)
            .start()
    }

    /// What the engine says about itself.
    #[must_use]
    pub fn info(&self) -> Info {
        self.say("info").json()
    }

    /// The engine's pid, while one holds the state directory.
    #[must_use]
    pub fn engine(&self) -> Option<Pid> {
        let mark = format!("--state-dir {}", self.state.display());
        let serves = |line: &str| line.contains(&mark) && line.contains("serve");
        survivors::processes(std::slice::from_ref(&mark))
            .into_iter()
            .find(|(_, line)| serves(line))
            .map(|(pid, _)| pid)
    }

    /// Kills the engine where it stands, and waits until it is gone.
    ///
    /// # Panics
    /// When it is the machine's first process, whose end is the machine's.
    pub fn kill_engine(&self) {
        assert!(!self.shared, "it is the machine's first process");
        if let Some(pid) = self.engine() {
            survivors::kill(pid);
        }
    }

    /// Watches the instance's directories from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::watch(&self.state, &self.run)
    }

    /// Pids of the instance's machines.
    #[must_use]
    pub fn machines(&self) -> Vec<Pid> {
        let Some(mark) = self.machine_mark() else {
            return Vec::new();
        };
        let found = survivors::processes(&[mark]);
        found.into_iter().map(|(pid, _)| pid).collect()
    }

    /// What stands in the command line of each machine of this instance.
    fn machine_mark(&self) -> Option<String> {
        let id = fs::read_to_string(self.state.join("instance")).ok()?;
        Some(format!("cowslip-{}-", id.trim()))
    }

    /// Every file and directory of an object.
    #[must_use]
    pub fn files(&self) -> BTreeSet<PathBuf> {
        survivors::files(&self.state, &self.run)
    }

    /// The ledger and the host must agree.
    ///
    /// # Panics
    /// When they do not.
    pub fn assert_agreement(&self) {
        let report: DoctorReport = self.say("doctor").json();
        assert_eq!(report.differences, Vec::<String>::new());
        assert!(report.healthy, "{:?}", report.checks);
    }

    /// No device of this instance, and none over a file of it.
    fn assert_no_devices(&self) {
        let instance = fs::read_to_string(self.state.join("instance")).unwrap_or_default();
        let left = survivors::devices(instance.trim(), &self.state);
        assert!(left.is_empty(), "devices are left: {left:?}");
    }

    /// No link and no rules of this instance.
    fn assert_no_networks(&self) {
        let instance = fs::read_to_string(self.state.join("instance")).unwrap_or_default();
        let instance = instance.trim();
        if instance.is_empty() || self.setup.user.is_some() {
            return;
        }
        for (words, mark) in [
            (&["ip", "-o", "link"][..], format!("cow{}.", &instance[..6])),
            (&["nft", "list", "tables"], format!("cowslip-{instance}")),
        ] {
            // What is not installed has made nothing.
            let Ok(output) = self.command(words[0]).args(&words[1..]).output() else {
                continue;
            };
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(!text.contains(&mark), "a network is left: {text}");
        }
    }

    /// Nothing may be there but these files: no machine, no other file, no row.
    ///
    /// # Panics
    /// When something is.
    pub fn assert_only(&self, files: &BTreeSet<PathBuf>) {
        self.assert_agreement();
        let machines = self.machines();
        assert!(machines.is_empty(), "machines are left: {machines:?}");
        self.assert_no_devices();
        let found = self.files();
        let more: Vec<_> = found.difference(files).collect();
        let less: Vec<_> = files.difference(&found).collect();
        assert!(
            more.is_empty() && less.is_empty(),
            "left: {more:?}; lost: {less:?}"
        );
    }
}

fn preferred(variable: &str, else_this: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| else_this.to_owned())
}

/// Puts a program into the instance's own directory, where a build meanwhile does not change it.
fn place(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
}
