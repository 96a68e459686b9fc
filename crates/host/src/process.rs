//! Processes: machine monitors. Acquire by fork and exec in a session of its own, release by
//! SIGKILL *and waiting for the end*.
//!
//! A monitor outlives the engine, so its identity is its pid together with its start time and the
//! boot id, and its command line must carry the mark that the row names (R45). A row that was
//! reserved and never recorded is found by that mark alone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::error::HostError;

/// How long the kernel may take to end a process that got SIGKILL, in seconds. One that is stuck in
/// the kernel longer is reported and stays in the ledger.
const KILL_BOUND_SECONDS: i64 = 30;

/// The kind.
#[derive(Debug)]
pub struct Process;

/// A process to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// A word of its command line that no other process has: `cowslip-<instance>-<sandbox>`.
    pub mark: String,
}

/// Which process it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub start_time: u64,
    /// The boot in which that was.
    pub boot_id: String,
}

impl Resource for Process {
    const KIND: &'static str = "process";
    type Spec = ProcessSpec;
    type Identity = ProcessIdentity;
}

/// The user a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What to start.
#[derive(Debug)]
pub struct Launch {
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments; one of them holds the mark.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// Descriptors it inherits, each under the number it has here.
    pub inherit: Vec<OwnedFd>,
    /// Its standard output and error.
    pub output: OwnedFd,
    /// The user it runs as; none: the engine's.
    pub credentials: Option<Credentials>,
}

/// The mark of a sandbox's monitor.
#[must_use]
pub fn mark(instance: cowslip_model::InstanceId, sandbox: cowslip_model::SandboxId) -> String {
    format!("cowslip-{instance}-{sandbox}")
}

/// The uid this process acts under.
#[must_use]
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether this process may act for other users.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The kernel's id of the present boot.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

pub(crate) fn acquire(
    slot: Reservation<Process>,
    launch: Launch,
) -> Result<Held<Process>, HostError> {
    let program = launch.program.display().to_string();
    let output = launch
        .output
        .try_clone()
        .map_err(HostError::process("start", &program))?;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .env_clear()
        .envs(launch.environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(launch.output));
    let inherited: Vec<RawFd> = launch.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let credentials = launch.credentials;
    // SAFETY: the closure runs between fork and exec. It makes system calls only, on values made
    // before the fork; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || prepare_child(&inherited, credentials.as_ref()));
    }
    let child = command
        .spawn()
        .map_err(HostError::process("start", &program))?;
    // From here on the descriptors are the child's; ours close when `launch.inherit` goes.
    drop(launch.inherit);
    let pid = child.id();
    let start_time = stat(pid)
        .map_err(HostError::process("look at the new", pid))?
        .map_or(0, |found| found.start_time);
    Ok(slot.acquired(ProcessIdentity {
        pid,
        start_time,
        boot_id: boot_id(),
    })?)
}

/// What the child does before exec: a session of its own, no way to gain privileges, no core files,
/// the inherited descriptors kept, and the user changed last.
fn prepare_child(inherited: &[RawFd], credentials: Option<&Credentials>) -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: plain system calls on integers and on structures that live across the call.
    unsafe {
        check(libc::setsid())?;
        libc::umask(0o077);
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        for &fd in inherited {
            check(libc::fcntl(fd, libc::F_SETFD, 0))?;
        }
        if let Some(user) = credentials {
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()))?;
            check(libc::setresgid(user.gid, user.gid, user.gid))?;
            check(libc::setresuid(user.uid, user.uid, user.uid))?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
    }
    Ok(())
}

/// What `/proc/<pid>/stat` says.
struct Stat {
    start_time: u64,
    ended: bool,
}

fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let text = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The second field is the program's name in parentheses and may hold anything, also ") ".
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "its stat line is malformed");
    let state = fields.first().ok_or_else(bad)?;
    let start_time = fields
        .get(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(bad)?;
    Ok(Some(Stat {
        start_time,
        ended: matches!(*state, "Z" | "X"),
    }))
}

fn has_mark(pid: u32, mark: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|&byte| byte == 0)
            .any(|word| word_has_mark(word, mark.as_bytes()))
    })
}

/// A mark stands alone or as a value: `-name cowslip-…,process=…`. It never is part of a longer id.
fn word_has_mark(word: &[u8], mark: &[u8]) -> bool {
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    word.windows(mark.len()).enumerate().any(|(at, window)| {
        window == mark
            && !word.get(at + mark.len()).is_some_and(inside)
            && !(at > 0 && word.get(at - 1).is_some_and(inside))
    })
}

/// Live processes whose command line carries the mark.
fn find(mark: &str) -> Result<BTreeSet<u32>, HostError> {
    let proc = Path::new("/proc");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(proc).map_err(HostError::path("list", proc))? {
        let entry = entry.map_err(HostError::path("list", proc))?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if pid != std::process::id()
            && has_mark(pid, mark)
            && stat(pid).ok().flatten().is_some_and(|stat| !stat.ended)
        {
            found.insert(pid);
        }
    }
    Ok(found)
}

/// Live processes that bear the mark of any sandbox of this instance: pid and sandbox.
pub(crate) fn find_all(
    instance: cowslip_model::InstanceId,
) -> Result<Vec<(u32, cowslip_model::SandboxId)>, HostError> {
    let prefix = format!("cowslip-{instance}-");
    let proc = Path::new("/proc");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc).map_err(HostError::path("list", proc))? {
        let entry = entry.map_err(HostError::path("list", proc))?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let text = String::from_utf8_lossy(&line);
        let sandbox = text
            .split(prefix.as_str())
            .skip(1)
            .find_map(|rest| rest.get(..16).and_then(|id| id.parse().ok()));
        if let Some(sandbox) = sandbox
            && stat(pid).ok().flatten().is_some_and(|stat| !stat.ended)
        {
            found.push((pid, sandbox));
        }
    }
    Ok(found)
}

/// Whether the process that `identity` names runs and is ours.
fn is_alive(spec: &ProcessSpec, identity: &ProcessIdentity) -> Result<bool, HostError> {
    if identity.boot_id != boot_id() {
        return Ok(false);
    }
    let found = stat(identity.pid).map_err(HostError::process("look at", identity.pid))?;
    Ok(found.is_some_and(|found| {
        !found.ended
            && found.start_time == identity.start_time
            && has_mark(identity.pid, &spec.mark)
    }))
}

pub(crate) fn probe(
    spec: &ProcessSpec,
    identity: Option<&ProcessIdentity>,
) -> Result<Presence, HostError> {
    let present = match identity {
        Some(identity) => is_alive(spec, identity)?,
        None => !find(&spec.mark)?.is_empty(),
    };
    Ok(if present {
        Presence::Present
    } else {
        Presence::Absent
    })
}

pub(crate) fn release(
    spec: &ProcessSpec,
    identity: Option<&ProcessIdentity>,
) -> Result<(), HostError> {
    match identity {
        Some(identity) => {
            if is_alive(spec, identity)? {
                kill_and_wait(identity.pid, &spec.mark)?;
            } else {
                reap(identity.pid);
            }
        }
        None => {
            for pid in find(&spec.mark)? {
                kill_and_wait(pid, &spec.mark)?;
            }
        }
    }
    Ok(())
}

/// Ends a process by SIGKILL and waits until the kernel says that it has ended.
fn kill_and_wait(pid: u32, mark: &str) -> Result<(), HostError> {
    let Some(pidfd) = open(pid).map_err(HostError::process("open", pid))? else {
        return Ok(());
    };
    // The descriptor pins the process; only now is the second look free of a race with pid reuse.
    if !has_mark(pid, mark) {
        reap(pid);
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(HostError::process("kill", pid)(error)),
    }
    let bound = Timespec {
        tv_sec: KILL_BOUND_SECONDS,
        tv_nsec: 0,
    };
    loop {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&bound)) {
            Ok(0) => {
                return Err(HostError::process("wait for the end of", pid)(
                    io::Error::from(io::ErrorKind::TimedOut),
                ));
            }
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(HostError::process("wait for", pid)(error)),
        }
    }
    reap_by(&pidfd);
    Ok(())
}

fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes the exit status of an ended child, so that no zombie stays. Not our child: nothing to do.
fn reap(pid: u32) {
    if let Ok(Some(pidfd)) = open(pid) {
        reap_by(&pidfd);
    }
}

fn reap_by(pidfd: &OwnedFd) -> Option<ExitStatus> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), options)
        .ok()
        .flatten()?;
    Some(ExitStatus {
        code: status.exit_status(),
        signal: status.terminating_signal(),
    })
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code, where it exited.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// Waits for the end of a process: `None` where it is no child of this engine (it was adopted) and
/// the kernel tells no status. Resolves at once where it has ended already.
///
/// # Errors
/// When the process cannot be watched.
pub async fn ended(
    spec: &ProcessSpec,
    identity: &ProcessIdentity,
) -> Result<Option<ExitStatus>, HostError> {
    let watch = HostError::process::<io::Error>;
    let Some(pidfd) = open(identity.pid).map_err(watch("watch", identity.pid))? else {
        return Ok(None);
    };
    // Only what is pinned by the descriptor can be compared without a race.
    if !is_alive(spec, identity)? {
        return Ok(reap_by(&pidfd));
    }
    // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives, and the
    // registration owns it.
    let pidfd =
        unsafe { AsyncFd::register(pidfd) }.map_err(HostError::process("watch", identity.pid))?;
    let _ready = pidfd
        .readable()
        .await
        .map_err(HostError::process("watch", identity.pid))?;
    Ok(reap_by(pidfd.get_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_whole_word() {
        let mark = b"cowslip-00000000000000aa-00000000000000bb";
        assert!(word_has_mark(
            b"cowslip-00000000000000aa-00000000000000bb",
            mark
        ));
        assert!(word_has_mark(
            b"cowslip-00000000000000aa-00000000000000bb,process=x",
            mark
        ));
        assert!(word_has_mark(
            b"guest=cowslip-00000000000000aa-00000000000000bb",
            mark
        ));
        assert!(!word_has_mark(
            b"cowslip-00000000000000aa-00000000000000bbcc",
            mark
        ));
        assert!(!word_has_mark(
            b"xcowslip-00000000000000aa-00000000000000bb",
            mark
        ));
    }

    #[test]
    fn a_stat_line_with_a_hostile_name_is_read() {
        let me = stat(std::process::id()).unwrap().unwrap();
        assert!(me.start_time > 0 && !me.ended);
        assert!(stat(u32::MAX / 2).unwrap().is_none());
    }
}
