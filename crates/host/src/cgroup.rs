//! Control groups: what a machine's processes may use together, and nobody else's.
//!
//! ```text
//!   second version   one group in the one hierarchy, with the controllers memory and pids
//!   first version    one group in the hierarchy of memory, and one in that of pids
//! ```
//!
//! The first is taken only where the second has no controllers. Acquire by `mkdir` below a hierarchy's root,
//! release by ending what is left in it and `rmdir`. A group's name is the mark of its machine, so that one
//! without a row is found.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::file::Inode;

/// Where the second version's hierarchy is: alone, or beside the first version's.
const SECOND: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// What limits need.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// Where the first version's hierarchies are, each below its controller's name.
const FIRST: &str = "/sys/fs/cgroup";
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

/// The roots of the hierarchies in which a machine gets a group with limits; none where this process may make
/// none, or controllers are missing.
#[must_use]
pub fn roots() -> Vec<PathBuf> {
    if !crate::process::is_root() {
        return Vec::new();
    }
    let second = SECOND.into_iter().map(PathBuf::from);
    if let Some(root) = second.into_iter().find(|root| offers(root)) {
        return vec![root];
    }
    let first = CONTROLLERS.map(|name| Path::new(FIRST).join(name));
    // Only the first version has this file.
    let is_first = |root: &PathBuf| root.join("release_agent").exists() && is_writable(root);
    if first.iter().all(is_first) {
        return first.into();
    }
    Vec::new()
}

/// Whether this is the second version's hierarchy, with what limits need.
fn offers(root: &Path) -> bool {
    let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let is_offered = |name: &&str| offered.split_whitespace().any(|word| word == *name);
    CONTROLLERS.iter().all(is_offered) && is_writable(root)
}

/// In a container it often is not, whoever asks.
fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

fn write(path: &Path, text: &str) -> Result<(), HostError> {
    fs::write(path, text).map_err(HostError::path("write to", path))
}

/// Gives the groups below the second version's root its controllers, where that was not done yet: the kernel looks
/// at every group for it.
fn hand_down(root: &Path) -> Result<(), HostError> {
    let path = root.join("cgroup.subtree_control");
    let given = fs::read_to_string(&path).map_err(HostError::path("read", &path))?;
    let is_given = |name: &&str| given.split_whitespace().any(|word| word == *name);
    if CONTROLLERS.iter().all(is_given) {
        return Ok(());
    }
    write(&path, "+memory +pids")
}

pub(crate) fn acquire(slot: Reservation<Cgroup>) -> Result<Held<Cgroup>, HostError> {
    let spec = slot.spec().clone();
    if let Some(root) = spec.path.parent().filter(|root| offers(root)) {
        hand_down(root)?;
    }
    fs::create_dir(&spec.path).map_err(HostError::path("make the control group", &spec.path))?;
    let inode = Inode::of(&spec.path)?;
    let (memory, tasks) = (spec.memory.to_string(), spec.tasks.to_string());
    // Each kind of group has its own of these files.
    let limits = [
        ("memory.max", memory.as_str()),
        ("memory.oom.group", "1"),
        ("memory.limit_in_bytes", &memory),
        // After the other, which it may not be below; not there without accounting of swap.
        ("memory.memsw.limit_in_bytes", &memory),
        ("pids.max", &tasks),
    ];
    let mut bounded = false;
    for (file, limit) in limits {
        let file = spec.path.join(file);
        if file.exists() {
            write(&file, limit)?;
            bounded = true;
        }
    }
    if !bounded {
        return Err(HostError::Foreign {
            path: spec.path,
            why: "a group there has no limits: mount cgroup2 with memory and pids".to_owned(),
        });
    }
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

/// Kills what is in the group and waits until nothing is.
fn empty(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + ENDING;
    if path.join("cgroup.kill").exists() {
        kill_at_once(path, deadline)
    } else {
        kill_one_by_one(path, deadline)
    }
}

fn left(deadline: Instant) -> io::Result<Timespec> {
    let left = deadline.checked_duration_since(Instant::now());
    let left = left
        .filter(|left| !left.is_zero())
        .ok_or(ErrorKind::TimedOut)?;
    Ok(Timespec::try_from(left).unwrap_or_default())
}

/// The kernel does it (second version, Linux 5.14), and says when nothing is left.
fn kill_at_once(path: &Path, deadline: Instant) -> io::Result<()> {
    let events = fs::File::open(path.join("cgroup.events"))?;
    fs::File::options()
        .write(true)
        .open(path.join("cgroup.kill"))?
        .write_all(b"1")?;
    while fs::read_to_string(path.join("cgroup.events"))?.contains("populated 1") {
        poll(
            &mut [PollFd::new(&events, PollFlags::PRI)],
            Some(&left(deadline)?),
        )?;
        // Reading is what makes the next change an event again.
        io::Read::read(&mut &events, &mut [0; 64])?;
        io::Seek::rewind(&mut &events)?;
    }
    Ok(())
}

fn members(path: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect())
}

fn kill_one_by_one(path: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        let listed = members(path)?;
        if listed.is_empty() {
            return Ok(());
        }
        for pid in listed {
            let process = match pidfd_open(pid, PidfdFlags::empty()) {
                Err(Errno::SRCH) => continue,
                opened => opened?,
            };
            // The number may have become another process' between the list and the opening.
            if !members(path)?.contains(&pid) {
                continue;
            }
            match pidfd_send_signal(&process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
            poll(
                &mut [PollFd::new(&process, PollFlags::IN)],
                Some(&left(deadline)?),
            )?;
        }
        left(deadline)?;
    }
}

/// Groups whose name begins like a mark of this instance.
fn marked(prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for root in roots() {
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(prefix)) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The marked groups that no row knows.
pub(crate) fn strays(prefix: &str, known: &[&Path]) -> io::Result<Vec<CgroupSpec>> {
    let unknown = |path: &PathBuf| !known.contains(&path.as_path());
    let spec = |path| CgroupSpec {
        path,
        memory: 0,
        tasks: 0,
    };
    Ok(marked(prefix)?
        .into_iter()
        .filter(unknown)
        .map(spec)
        .collect())
}

/// Bytes that the processes of all marked groups have written to files and devices, and that the page cache has not
/// written on yet.
pub(crate) fn unwritten(prefix: &str) -> io::Result<u64> {
    let groups = marked(prefix)?;
    // Of the first version's two groups one knows nothing of memory, and any may be gone by now.
    let stats = groups
        .iter()
        .filter_map(|path| fs::read_to_string(path.join("memory.stat")).ok());
    Ok(stats.map(|stat| waiting(&stat)).sum())
}

/// What waits in the page cache by a `memory.stat`, of either version.
fn waiting(stat: &str) -> u64 {
    const FIELDS: [&str; 4] = ["file_dirty", "file_writeback", "dirty", "writeback"];
    let fields = stat.lines().filter_map(|line| line.split_once(' '));
    fields
        .filter(|(name, _)| FIELDS.contains(name))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::waiting;

    #[test]
    fn either_versions_words_are_known() {
        let second = "anon 1\nfile 4096\nfile_dirty 8192\nfile_writeback 4096\nfile_mapped 7\n";
        assert_eq!(waiting(second), 12_288);
        let first = "cache 1\nmapped_file 9\ndirty 4096\nwriteback 0\ntotal_dirty 4096\n";
        assert_eq!(waiting(first), 4096);
        assert_eq!(waiting(""), 0);
    }
}
