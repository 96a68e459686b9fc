//! Ending processes, and waiting for their end, by pidfd: a descriptor that never comes to mean
//! another process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;

use super::inspect::{Standing, look, stat};
use super::{ProcessIdentity, ProcessSpec};
use crate::error::HostError;

/// How long the kernel may take to end a process that got SIGKILL, in seconds. One that is stuck in
/// the kernel longer is reported and stays in the ledger.
const KILL_BOUND_SECONDS: i64 = 30;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code, where it exited.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// Ends the process that started then by SIGKILL, and waits until the kernel says that all of it
/// has ended. Gone already is fine.
pub(super) fn end(pid: u32, start_time: u64) -> Result<(), HostError> {
    let Some(pidfd) = open(pid).map_err(HostError::process("open", pid))? else {
        return Ok(());
    };
    // The descriptor pins the process; only now is the comparison free of a race with pid reuse.
    let found = stat(pid).map_err(HostError::process("look at", pid))?;
    if found.is_none_or(|found| found.start_time != start_time) {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(HostError::process("kill", pid)(error)),
    }
    wait(&pidfd, pid)?;
    reap(&pidfd);
    Ok(())
}

fn wait(pidfd: &OwnedFd, pid: u32) -> Result<(), HostError> {
    let bound = Timespec {
        tv_sec: KILL_BOUND_SECONDS,
        tv_nsec: 0,
    };
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&bound)) {
            Ok(0) => {
                let late = io::Error::from(io::ErrorKind::TimedOut);
                return Err(HostError::process("wait for the end of", pid)(late));
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(HostError::process("wait for", pid)(error)),
        }
    }
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
fn reap(pidfd: &OwnedFd) -> Option<ExitStatus> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), options)
        .ok()
        .flatten()?;
    Some(ExitStatus {
        code: status.exit_status(),
        signal: status.terminating_signal(),
    })
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
    let pid = identity.pid;
    let Some(pidfd) = open(pid).map_err(HostError::process("watch", pid))? else {
        return Ok(None);
    };
    // Only what is pinned by the descriptor can be compared without a race.
    if look(spec, identity)? == Standing::Gone {
        return Ok(None);
    }
    // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives, and the
    // registration owns it.
    let pidfd = unsafe { AsyncFd::register(pidfd) }.map_err(HostError::process("watch", pid))?;
    let _ready = pidfd
        .readable()
        .await
        .map_err(HostError::process("watch", pid))?;
    Ok(reap(pidfd.get_ref()))
}
