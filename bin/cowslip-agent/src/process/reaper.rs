//! Who waits for whom: every child of this process is reaped here and nowhere else.
//!
//! As PID 1 the agent inherits every orphan of the guest, so it must wait for *any* child; and it
//! must not lose the status of a child that it started itself, even of one that ends before
//! `spawn` has returned. Both hold because starting a child and entering it in the table happen
//! under the same lock under which children are reaped.
//!
//! Everybody else must neither wait for a child nor signal a pid except through this table: a pid
//! that is not in it may belong to another process by now.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowslip_proto::pb;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use crate::sys;

/// How a child ended.
pub(crate) type Exit = pb::Exited;

/// All children of this process.
#[derive(Debug, Default)]
pub(crate) struct Children {
    waiting: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    /// Told after every round of reaping.
    reaped: Notify,
}

impl Children {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child; its status will come through the receiver.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
    ) -> io::Result<(i32, oneshot::Receiver<Exit>)> {
        let mut waiting = self.lock();
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let (sender, receiver) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok((pid, receiver))
    }

    /// Signals a child that was not reaped yet, or its process group.
    pub(crate) fn signal(&self, pid: i32, signal: i32, group: bool) -> io::Result<()> {
        let waiting = self.lock();
        if !waiting.contains_key(&pid) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        sys::kill(if group { -pid } else { pid }, signal)
    }

    /// Reaps whatever has ended.
    fn reap(&self) {
        let mut waiting = self.lock();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => deliver(&mut waiting, pid, status),
                Err(rustix::io::Errno::INTR) => {}
                // None has ended, or there is none.
                Ok(None) | Err(_) => break,
            }
        }
        drop(waiting);
        self.reaped.notify_waiters();
    }

    /// Waits until there is no child at all. Needs [`run`](Self::run) beside it.
    pub(crate) async fn none_left(&self) {
        loop {
            let round = self.reaped.notified();
            // Only looks: the status stays for `reap`.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if waitid(WaitId::All, look).is_err_and(|e| e == rustix::io::Errno::CHILD) {
                return;
            }
            round.await;
        }
    }

    /// Reaps for as long as it is polled.
    pub(crate) async fn run(self: Arc<Self>) -> io::Result<()> {
        let mut ended: Signal = signal(SignalKind::child())?;
        loop {
            // Also before the first signal: it may have come before we listened.
            self.reap();
            if ended.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Waits for the next round of reaping that begins after this call.
    pub(crate) fn next_round(&self) -> impl Future<Output = ()> + '_ {
        self.reaped.notified()
    }
}

fn deliver(waiting: &mut HashMap<i32, oneshot::Sender<Exit>>, pid: Pid, status: WaitStatus) {
    if let Some(sender) = waiting.remove(&pid.as_raw_nonzero().get()) {
        // Nobody may be interested any more, and an orphan never had anybody.
        let _ = sender.send(exit_of(status));
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    use pb::exited::How;
    let how = match status.terminating_signal() {
        Some(signal) => How::Signal(signal),
        None => How::Code(status.exit_status().unwrap_or(255)),
    };
    // The core flag of wait(2).
    Exit {
        how: Some(how),
        core_dumped: status.signaled() && status.as_raw() & 0x80 != 0,
    }
}
