//! The world outside the engine: a file system, processes and their guests, mounts. It survives the
//! engine's death, as the real one does.
//!
//! Beside what the kernel would refuse, the world notes *violations*: what the kernel allows and
//! cowslip must never do, such as removing a disk that a machine writes. A test asserts that there
//! are none.

mod files;
mod guest;
mod networks;
mod processes;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use guest::{GuestView, NoGuest};
pub use snapshot::Snapshot;

pub(crate) use files::{FileNode, Node};
pub(crate) use guest::{GuestState, Image, Machine, Memory};
pub(crate) use processes::{LastWords, Process};

use cowslip_host::file::Inode;
use cowslip_host::usage::Space;

/// The device number of the one file system.
const DEVICE: u64 = 1;

/// Everything outside the engine; clones are the same world.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    sockets: Arc<tempfile::TempDir>,
}

pub(crate) struct Inner {
    pub(crate) boot: u64,
    pub(crate) entries: BTreeMap<PathBuf, files::Entry>,
    pub(crate) processes: BTreeMap<u32, Process>,
    pub(crate) mounts: BTreeMap<PathBuf, u64>,
    /// Who is told what a network denies, by the name of its namespace.
    pub(crate) logs: BTreeMap<PathBuf, OwnedFd>,
    /// The host's rules for all networks; none: it has none of ours.
    pub(crate) host_rules: Option<String>,
    pub(crate) violations: Vec<String>,
    /// Random bytes that guests were given.
    pub(crate) entropy: BTreeSet<Vec<u8>>,
    pub(crate) space: Space,
    next_number: u64,
}

impl World {
    /// An empty world.
    ///
    /// # Errors
    /// When the directory for real sockets cannot be made.
    pub fn new() -> std::io::Result<Self> {
        let inner = Inner {
            boot: 1,
            entries: BTreeMap::new(),
            processes: BTreeMap::new(),
            mounts: BTreeMap::new(),
            logs: BTreeMap::new(),
            host_rules: None,
            violations: Vec::new(),
            entropy: BTreeSet::new(),
            space: Space {
                free: 1 << 40,
                total: 2 << 40,
            },
            next_number: 1000,
        };
        Ok(Self {
            inner: Arc::new(Mutex::new(inner)),
            sockets: Arc::new(tempfile::tempdir()?),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path in the real file system for a socket that is unlinked as soon as it is bound.
    pub(crate) fn socket_path(&self) -> PathBuf {
        let number = self.lock().number();
        self.sockets.path().join(number.to_string())
    }

    /// The kernel's id of the present boot.
    #[must_use]
    pub fn boot_id(&self) -> String {
        format!("boot-{}", self.lock().boot)
    }

    /// What was done that must never be done, in order. Empty is right.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// What the disk has free from now on, in bytes.
    pub fn set_free_space(&self, free: u64) {
        self.lock().space.free = free;
    }

    /// The host loses power and boots again: processes and mounts are gone, and what was below
    /// `run`, a file system in memory. Files stay.
    pub fn reboot(&self, run: &std::path::Path) {
        let mut inner = self.lock();
        inner.boot += 1;
        let pids: Vec<u32> = inner.processes.keys().copied().collect();
        for pid in pids {
            inner.end_process(pid, Some("the host lost power"));
        }
        inner.mounts.clear();
        inner.logs.clear();
        inner.host_rules = None;
        inner.entries.retain(|path, _| !path.starts_with(run));
    }
}

impl Inner {
    /// A number that was never given out before.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(crate) fn inode(&self, number: u64) -> Inode {
        Inode {
            dev: DEVICE,
            ino: number,
        }
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }
}
