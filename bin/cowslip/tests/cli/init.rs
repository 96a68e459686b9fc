//! The engine as process 1 of a pid namespace, and where children's signals are ignored (R11).

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::fake::{Printed, cowslip};

/// Imports that wait for the status of `mke2fs` each.
const IMPORTS: usize = 12;
/// Only a failure ever waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// An engine, started by a command that changes the circumstances of one.
struct Engine {
    starter: Child,
    state: tempfile::TempDir,
}

impl Engine {
    /// None, told loudly, where the starter is not allowed what it does.
    #[allow(clippy::print_stderr)]
    fn started_by(words: &[&str]) -> Option<Self> {
        let state = tempfile::tempdir().unwrap();
        let config = state.path().join("config.toml");
        std::fs::write(&config, "[storage]\nbackend = \"copy\"\n").unwrap();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_cowslip"));
        command.arg("--state-dir").arg(state.path());
        command.args(["serve", "--config"]).arg(&config);
        let mut starter = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(starter.stderr.take().unwrap());
        let mut lines = String::new();
        while !lines.contains("listening") {
            if said.read_line(&mut lines).unwrap() == 0 {
                starter.wait().unwrap();
                assert!(lines.starts_with("unshare: "), "no engine: {lines}");
                eprintln!("SKIPPED: {lines}");
                return None;
            }
        }
        // It is not to wait for somebody to read its log.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Some(Self { starter, state })
    }

    /// As process 1.
    fn as_init() -> Option<Self> {
        let mut words = vec!["unshare", "--pid", "--mount-proc", "--kill-child", "--fork"];
        if !rustix::process::geteuid().is_root() {
            words.push("--map-root-user");
        }
        Self::started_by(&words)
    }

    fn run(&self, arguments: &[&str]) -> Printed {
        let output = cowslip(self.state.path()).args(arguments).output();
        output.unwrap().into()
    }

    /// Imports directories, one by one, under names that begin with `prefix`.
    fn import(&self, prefix: &str) {
        let source = tempfile::tempdir().unwrap();
        for index in 0..IMPORTS {
            std::fs::write(source.path().join("file"), index.to_string()).unwrap();
            let name = format!("{prefix}{index}");
            let place = source.path().to_str().unwrap();
            let printed = self.run(&["template", "import", &name, place]);
            assert_eq!(printed.code, 0, "import {index}: {printed:?}");
        }
    }

    /// Process 1, as it is seen from here.
    fn init(&self) -> Pid {
        children(Pid::from_child(&self.starter)).remove(0)
    }

    /// The engine that process 1 runs.
    fn engine(&self) -> Pid {
        let engine = |pid: &Pid| read(*pid, "cmdline").starts_with("cowslip\0");
        children(self.init()).into_iter().find(engine).unwrap()
    }

    /// Runs a script among the processes of process 1.
    fn inside(&self, script: &str) -> Child {
        let init = self.init().as_raw_nonzero().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &init, "--pid", "--mount"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["sh", "-c", script]);
        command.spawn().unwrap()
    }

    fn end(&mut self) -> ExitStatus {
        self.starter.wait().unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.starter.kill();
        let _ = self.starter.wait();
    }
}

fn read(pid: Pid, name: &str) -> String {
    let path = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    // Gone meanwhile: nothing.
    std::fs::read_to_string(path.join(name)).unwrap_or_default()
}

/// The children of a process, zombies among them.
fn children(parent: Pid) -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &Pid| {
        let stat = read(*pid, "stat");
        let after_state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.get(2..));
        let of = after_state.and_then(|rest| rest.split(' ').next()?.parse().ok());
        of == Some(parent.as_raw_nonzero().get())
    };
    let pids = pids.filter_map(Pid::from_raw);
    pids.filter(is_child).collect()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "it never came: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn as_process_1_it_reaps_orphans_and_loses_no_status_of_its_own_children() {
    // covers R11
    let Some(mut engine) = Engine::as_init() else {
        return;
    };
    let init = engine.init();
    assert!(read(init, "status").contains("\nNSpid:"));
    // The parent of each ends at once, so they are left to process 1: some while it waits for `mke2fs`.
    let storm = "i=0; while [ $i -lt 1500 ]; do i=$((i+1)); (sh -c 'exit 3' &); done; \
                 (exec sleep 1000 &)";
    let mut storm = engine.inside(storm);
    engine.import("beside");
    assert!(storm.wait().unwrap().success());
    let is_sleep = |pid: &Pid| read(*pid, "comm") == "sleep\n";
    let sleeps = || {
        let all = children(init).into_iter();
        all.filter(is_sleep).collect::<Vec<_>>()
    };
    until("the orphan", || !sleeps().is_empty());
    kill_process(sleeps()[0], Signal::KILL).unwrap();
    until("the end of every zombie", || {
        children(init) == [engine.engine()]
    });
    engine.import("after");

    kill_process(init, Signal::TERM).unwrap();
    let socket = engine.state.path().join("run/cowslip.sock");
    assert_eq!(engine.end().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn process_1_ends_with_its_engine_and_tells_how_that_ended() {
    let Some(mut engine) = Engine::as_init() else {
        return;
    };
    kill_process(engine.engine(), Signal::KILL).unwrap();
    assert_eq!(engine.end().code(), Some(128 + 9));

    let Some(mut engine) = Engine::as_init() else {
        return;
    };
    kill_process(engine.init(), Signal::INT).unwrap();
    let ended = engine.end();
    assert_eq!((ended.code(), ended.signal()), (Some(0), None));
}

#[test]
fn statuses_are_kept_where_the_signal_of_children_is_ignored() {
    // covers R11
    let mut engine = Engine::started_by(&["env", "--ignore-signal=CHLD"]).unwrap();
    engine.import("t");
    kill_process(Pid::from_child(&engine.starter), Signal::TERM).unwrap();
    assert_eq!(engine.end().code(), Some(0));
}
