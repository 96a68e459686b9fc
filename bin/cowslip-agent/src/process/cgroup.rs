//! A cgroup for each process that the agent starts, so that all it leaves behind can be killed.
//!
//! A cgroup outlives its process for as long as something runs in it. Removing is tried whenever
//! children were reaped: that is when a cgroup can have become empty.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where a guest's cgroups are.
const ROOT: &str = "/sys/fs/cgroup/cowslip";

/// The directory of all of them.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: Option<PathBuf>,
    /// Of ended processes.
    leaving: Mutex<Vec<PathBuf>>,
}

/// The cgroup of one process.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroups {
    /// Uses the guest's cgroup2 tree, where there is one.
    pub(crate) fn of_guest() -> Self {
        let root = Path::new(ROOT);
        let usable = Path::new("/sys/fs/cgroup/cgroup.procs").exists()
            && (root.is_dir() || fs::create_dir(root).is_ok());
        Self {
            root: usable.then(|| root.to_owned()),
            leaving: Mutex::default(),
        }
    }

    /// Uses none: an ordinary process must not touch its host's.
    pub(crate) fn none() -> Self {
        Self {
            root: None,
            leaving: Mutex::default(),
        }
    }

    /// Makes a process's cgroup and opens the file through which it enters.
    pub(crate) fn create(&self, process: &str) -> Option<(Cgroup, File)> {
        let path = self.root.as_ref()?.join(process);
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return None,
            _ => {}
        }
        let procs = OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.procs"));
        match procs {
            Ok(procs) => Some((Cgroup(path), procs)),
            Err(_) => {
                self.leave(Cgroup(path));
                None
            }
        }
    }

    /// The process has ended: remove its cgroup as soon as it is empty.
    pub(crate) fn leave(&self, cgroup: Cgroup) {
        self.leaving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(cgroup.0);
        self.sweep();
    }

    /// Removes what has become empty.
    pub(crate) fn sweep(&self) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|path| {
            fs::remove_dir(path).is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy)
        });
    }

    /// Kills everything in the cgroup of a process that runs or has left something behind.
    pub(crate) fn kill(&self, process: &str) -> io::Result<()> {
        let Some(root) = &self.root else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let kill = OpenOptions::new()
            .write(true)
            .open(root.join(process).join("cgroup.kill"));
        kill?.write_all(b"1")
    }
}
