//! Processes: all of them are machine monitors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowslip_host::ProcessIdentity;
use cowslip_model::SandboxId;
use tokio::sync::watch;

use super::guest::{GuestState, Machine};
use super::{Inner, World};

/// A running process.
pub(crate) struct Process {
    pub(crate) mark: String,
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) start_time: u64,
    /// Directories that must outlive it.
    pub(crate) directories: Vec<PathBuf>,
    /// The machine it runs, once it was told to.
    pub(crate) machine: Option<Machine>,
    /// Becomes `Some(last words)` when it ends.
    ended: watch::Sender<Option<LastWords>>,
}

/// What a monitor said when it ended, if it said anything.
pub(crate) type LastWords = Option<Arc<str>>;

impl Process {
    /// Every file it has open.
    pub(crate) fn opened(&self) -> impl Iterator<Item = &Path> {
        self.machine
            .iter()
            .flat_map(|machine| machine.chain.iter().map(PathBuf::as_path))
    }

    /// The file that it writes.
    pub(crate) fn written(&self) -> Option<&Path> {
        self.machine
            .as_ref()
            .and_then(|machine| machine.chain.last())
            .map(PathBuf::as_path)
    }

    /// Whether its guest does nothing now.
    pub(crate) fn stands_still(&self) -> bool {
        self.machine
            .as_ref()
            .is_none_or(|machine| machine.state == GuestState::Paused)
    }
}

impl World {
    /// Ends the machine of a sandbox as a fault of its monitor would: it leaves last words.
    /// Whether there was one.
    pub fn crash_machine(&self, sandbox: SandboxId, last_words: &str) -> bool {
        let mut inner = self.lock();
        let pid = inner.process_of(sandbox).map(|(pid, _)| pid);
        pid.is_some_and(|pid| inner.end_process(pid, Some(last_words)))
    }

    /// The guest powers off by itself. Whether there was one.
    pub fn power_off(&self, sandbox: SandboxId) -> bool {
        let mut inner = self.lock();
        let pid = inner.process_of(sandbox).map(|(pid, _)| pid);
        pid.is_some_and(|pid| inner.end_process(pid, None))
    }

    /// Pids of the sandbox's machine; more than one is a violation already noted.
    #[must_use]
    pub fn pids(&self, sandbox: SandboxId) -> Vec<u32> {
        let inner = self.lock();
        let of = |process: &Process| process.sandbox == Some(sandbox);
        inner
            .processes
            .iter()
            .filter(|(_, process)| of(process))
            .map(|(pid, _)| *pid)
            .collect()
    }
}

impl Inner {
    pub(crate) fn process_of(&self, sandbox: SandboxId) -> Option<(u32, &Process)> {
        let found = self
            .processes
            .iter()
            .find(|(_, process)| process.sandbox == Some(sandbox));
        found.map(|(pid, process)| (*pid, process))
    }

    /// The process that writes this file.
    pub(crate) fn writer_of(&self, path: &Path) -> Option<&Process> {
        self.processes
            .values()
            .find(|process| process.written() == Some(path))
    }

    pub(crate) fn spawn(
        &mut self,
        mark: &str,
        sandbox: Option<SandboxId>,
        directories: Vec<PathBuf>,
    ) -> ProcessIdentity {
        if self.processes.values().any(|process| process.mark == mark) {
            self.violation(format!("a second process was started as {mark}"));
        }
        for directory in &directories {
            if !self.entries.contains_key(directory) {
                let what = format!("{mark} was started without \"{}\"", directory.display());
                self.violation(what);
            }
        }
        let start_time = self.number();
        let pid = u32::try_from(start_time).unwrap_or(u32::MAX);
        let process = Process {
            mark: mark.to_owned(),
            sandbox,
            start_time,
            directories,
            machine: None,
            ended: watch::Sender::new(None),
        };
        self.processes.insert(pid, process);
        ProcessIdentity {
            pid,
            start_time,
            boot_id: format!("boot-{}", self.boot),
        }
    }

    /// Ends a process and tells those who wait for that. Whether it ran.
    pub(crate) fn end_process(&mut self, pid: u32, last_words: Option<&str>) -> bool {
        let Some(process) = self.processes.remove(&pid) else {
            return false;
        };
        process.ended.send_replace(Some(last_words.map(Arc::from)));
        true
    }

    pub(crate) fn watch(&self, pid: u32) -> Option<watch::Receiver<Option<LastWords>>> {
        self.processes
            .get(&pid)
            .map(|process| process.ended.subscribe())
    }

    /// Whether the process that `identity` names runs.
    pub(crate) fn is_alive(&self, mark: &str, identity: &ProcessIdentity) -> bool {
        identity.boot_id == format!("boot-{}", self.boot)
            && self.processes.get(&identity.pid).is_some_and(|process| {
                process.start_time == identity.start_time && process.mark == mark
            })
    }
}
