//! Control groups of the second version: what a machine's processes may use together, and nobody else's.
//!
//! Acquire by `mkdir` below the hierarchy's root, release by ending what is left in it and `rmdir`. A
//! group's name is the mark of its machine, so that one without a row is found.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::file::Inode;

/// Where the hierarchy is: alone, or beside the first version's.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// What limits need.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// How long processes that were killed may take to be gone.
const ENDING: Duration = Duration::from_secs(10);

/// The kind.
#[derive(Debug)]
pub struct Cgroup;

/// A control group to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSpec {
    /// Its directory; the parent exists.
    pub path: PathBuf,
    /// Memory of its processes at most, in bytes, what the page cache has of their files included.
    pub memory: u64,
    /// Its processes and threads at most.
    pub tasks: u64,
}

impl Resource for Cgroup {
    const KIND: &'static str = "cgroup";
    type Spec = CgroupSpec;
    type Identity = Inode;
}

/// The root of the hierarchy, where this process may make groups with limits below it.
#[must_use]
pub fn root() -> Option<PathBuf> {
    if !crate::process::is_root() {
        return None;
    }
    let offers = |root: &Path| {
        // Only the second version has this file.
        let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let is_offered = |name: &&str| offered.split_whitespace().any(|word| word == *name);
        CONTROLLERS.iter().all(is_offered)
    };
    ROOTS
        .into_iter()
        .map(PathBuf::from)
        .find(|root| offers(root))
}

fn write(path: &Path, text: &str) -> Result<(), HostError> {
    fs::write(path, text).map_err(HostError::path("write to", path))
}

pub(crate) fn acquire(slot: Reservation<Cgroup>) -> Result<Held<Cgroup>, HostError> {
    let spec = slot.spec().clone();
    if let Some(root) = spec.path.parent() {
        // Having them already is fine.
        write(&root.join("cgroup.subtree_control"), "+memory +pids")?;
    }
    fs::create_dir(&spec.path).map_err(HostError::path("make the control group", &spec.path))?;
    let inode = Inode::of(&spec.path)?;
    write(&spec.path.join("memory.max"), &spec.memory.to_string())?;
    write(&spec.path.join("memory.oom.group"), "1")?;
    write(&spec.path.join("pids.max"), &spec.tasks.to_string())?;
    Ok(slot.acquired(inode)?)
}

/// Opens the file by which a process joins the group.
pub(crate) fn entrance(path: &Path) -> io::Result<OwnedFd> {
    let procs = fs::File::options()
        .write(true)
        .open(path.join("cgroup.procs"))?;
    Ok(procs.into())
}

pub(crate) fn probe(spec: &CgroupSpec, identity: Option<&Inode>) -> Result<Presence, HostError> {
    match fs::symlink_metadata(&spec.path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Presence::Absent),
        Err(error) => Err(HostError::path("look at", &spec.path)(error)),
        Ok(found) => match identity {
            Some(inode) if !inode.matches(found.dev(), found.ino()) => Ok(Presence::Foreign),
            _ => Ok(Presence::Present),
        },
    }
}

pub(crate) fn release(spec: &CgroupSpec, identity: Option<&Inode>) -> Result<(), HostError> {
    let path = &spec.path;
    match probe(spec, identity)? {
        Presence::Absent => return Ok(()),
        Presence::Foreign => {
            return Err(HostError::Foreign {
                path: path.clone(),
                why: "another control group has its place".to_owned(),
            });
        }
        Presence::Present => {}
    }
    let remove = || match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    };
    match remove() {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
        other => return other.map_err(HostError::path("remove the control group", path)),
    }
    // Its machine was ended; what it left behind goes the same way.
    empty(path).map_err(HostError::path("end what is in the control group", path))?;
    remove().map_err(HostError::path("remove the control group", path))
}

/// Kills what is in the group (Linux 5.14) and waits for the kernel to say that nothing is.
fn empty(path: &Path) -> io::Result<()> {
    let events = fs::File::open(path.join("cgroup.events"))?;
    fs::File::options()
        .write(true)
        .open(path.join("cgroup.kill"))?
        .write_all(b"1")?;
    let begun = Instant::now();
    while fs::read_to_string(path.join("cgroup.events"))?.contains("populated 1") {
        let left = ENDING
            .checked_sub(begun.elapsed())
            .ok_or(ErrorKind::TimedOut)?;
        let left = Timespec::try_from(left).unwrap_or_default();
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left))?;
        // Reading is what makes the next change an event again.
        io::Read::read(&mut &events, &mut [0; 64])?;
        io::Seek::rewind(&mut &events)?;
    }
    Ok(())
}

/// Groups whose name begins like a mark of this instance, and that no row knows.
pub(crate) fn strays(prefix: &str, known: &[&Path]) -> io::Result<Vec<CgroupSpec>> {
    let Some(root) = root() else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(prefix)) && !known.contains(&path.as_path()) {
            found.push(CgroupSpec {
                path,
                memory: 0,
                tasks: 0,
            });
        }
    }
    Ok(found)
}
