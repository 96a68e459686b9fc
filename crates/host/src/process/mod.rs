//! Processes: machine monitors. Acquire by fork and exec in a session of its own, release by
//! SIGKILL *and waiting for the end*.
//!
//! A monitor outlives the engine, so its identity is its pid together with its start time and the
//! boot id, and its command line must carry the mark that the row names (R45). A row that was
//! reserved and never recorded is found by that mark alone.

mod children;
mod end;
mod inspect;
mod view;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

pub use children::keep_statuses;
pub use end::{ExitStatus, ended};
pub(crate) use inspect::find_all;
pub use inspect::thread_has_filter;
pub use view::{Binding, Node, View};

use crate::cgroup;
use crate::error::HostError;
use end::end;
use inspect::{Standing, find, look, stat};
use view::Prepared;

/// The kind.
#[derive(Debug)]
pub struct Process;

/// A process to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// A word of its command line that no other process has: `cowslip-<instance>-<sandbox>`.
    pub mark: String,
    /// The root directory that its jail gives it, as its own mount namespace has it; none without a
    /// jail. Recorded, since what `/proc` says of a process that ends or was replaced is no proof (R49).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
}

impl ProcessSpec {
    /// A process without a jail.
    #[must_use]
    pub fn unjailed(mark: String) -> Self {
        Self { mark, root: None }
    }
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
    /// What it sees that others do not; none: what the engine sees.
    pub view: Option<View>,
    /// The control groups, of different hierarchies, that it is in from its first instruction on; of others it
    /// has the engine's.
    pub cgroups: Vec<PathBuf>,
    /// The name of the network namespace that it is in; none: the engine's.
    pub netns: Option<PathBuf>,
}

/// The mark of a sandbox's monitor.
#[must_use]
pub fn mark(instance: cowslip_model::InstanceId, sandbox: cowslip_model::SandboxId) -> String {
    format!("cowslip-{instance}-{sandbox}")
}

/// What the marks of an instance's monitors begin with.
#[must_use]
pub fn mark_prefix(instance: cowslip_model::InstanceId) -> String {
    format!("cowslip-{instance}-")
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
    let view = launch
        .view
        .as_ref()
        .map(View::prepare)
        .transpose()
        .map_err(HostError::process("prepare what it sees, for", &program))?;
    let groups = launch.cgroups.iter().map(|group| cgroup::entrance(group));
    let groups: Vec<OwnedFd> = groups
        .collect::<io::Result<_>>()
        .map_err(HostError::process("open the control group of", &program))?;
    let netns = launch.netns.as_ref().map(std::fs::File::open);
    let netns = netns.transpose().map_err(HostError::process(
        "open the network namespace of",
        &program,
    ))?;
    // SAFETY: the closure runs between fork and exec. It makes system calls only, on values made
    // before the fork; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            if let Some(netns) = &netns {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            for group in &groups {
                join(group)?;
            }
            prepare_child(&inherited, view.as_ref(), credentials.as_ref())
        });
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
    let recorded = slot.acquired(ProcessIdentity {
        pid,
        start_time,
        boot_id: boot_id(),
    });
    if recorded.is_err() {
        // Without a row nobody would find it but as a stray. Its end is tried; the failure to
        // record it is what counts, and a row that is still there finds it by its mark.
        let _ = end(pid, start_time);
    }
    Ok(recorded?)
}

/// Puts the calling process into the group whose entrance this is.
fn join(group: &OwnedFd) -> io::Result<()> {
    const OURSELVES: &[u8] = b"0";
    let fd = group.as_raw_fd();
    // SAFETY: a system call on an open descriptor and on bytes that live across it.
    let written = unsafe { libc::write(fd, OURSELVES.as_ptr().cast(), OURSELVES.len()) };
    if written == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What the child does before exec: a session of its own, no way to gain privileges, no core files,
/// the inherited descriptors kept and no others, its own view, and the user changed last.
fn prepare_child(
    inherited: &[RawFd],
    view: Option<&Prepared>,
    credentials: Option<&Credentials>,
) -> io::Result<()> {
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
        // What the engine itself was started with and did not open: a pipe of the caller's that a
        // monitor kept open would never end. Kernels before 5.11 cannot, and lose only that.
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        for &fd in inherited {
            check(libc::fcntl(fd, libc::F_SETFD, 0))?;
        }
        if let Some(view) = view {
            view.enter()?;
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

pub(crate) fn probe(
    spec: &ProcessSpec,
    identity: Option<&ProcessIdentity>,
) -> Result<Presence, HostError> {
    let Some(identity) = identity else {
        let found = find(&spec.mark)?;
        return Ok(if found.is_empty() {
            Presence::Absent
        } else {
            Presence::Present
        });
    };
    Ok(match look(spec, identity)? {
        Standing::Ours => Presence::Present,
        Standing::Ending | Standing::Gone => Presence::Absent,
        Standing::Unmarked => Presence::Foreign,
    })
}

pub(crate) fn release(
    spec: &ProcessSpec,
    identity: Option<&ProcessIdentity>,
) -> Result<(), HostError> {
    let Some(identity) = identity else {
        for found in find(&spec.mark)? {
            end(found.pid, found.start_time)?;
        }
        return Ok(());
    };
    match look(spec, identity)? {
        Standing::Gone => Ok(()),
        // One that is ending may still write to its disk: it is waited for too (R13).
        Standing::Ours | Standing::Ending => end(identity.pid, identity.start_time),
        Standing::Unmarked => Err(HostError::Unmarked {
            pid: identity.pid,
            mark: spec.mark.clone(),
        }),
    }
}
