//! Process 1 of an outer machine or container: runs the engine as a child, passes signals on, and
//! reaps whatever is left to it.
//!
//! The engine itself is never process 1, so it never meets children that are not its own, and never
//! loses an exit status to a reaper (R11). Monitors that outlive an engine become children of this
//! process.

use std::os::unix::process::CommandExt;
use std::process::Command;

use cowslip_model::api::ErrorCode;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

/// Runs the same command as a child; gives its exit code.
pub(super) fn run() -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::io("start the event loop", &error))?;
    runtime.block_on(attend())
}

async fn attend() -> Result<u8, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::io("listen for signals", &error));
    // Before the child starts: its end is never missed.
    let mut child_ended = listen(SignalKind::child())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let child = Command::new("/proc/self/exe")
        .arg0("cowslip")
        .args(std::env::args_os().skip(1))
        .spawn()
        .map_err(|error| Failure::io("start the engine", &error))?;
    // Its status is taken below, among everybody's.
    let engine = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some(engine) = engine else {
        return Err(Failure::new(
            ErrorCode::Internal,
            "start the engine: it has no process id",
        ));
    };
    loop {
        let forwarded = tokio::select! {
            _ = child_ended.recv() => None,
            _ = terminate.recv() => Some(Signal::TERM),
            _ = interrupt.recv() => Some(Signal::INT),
            _ = hangup.recv() => Some(Signal::HUP),
        };
        if let Some(signal) = forwarded {
            // Not reaped yet, so the pid is still the engine's.
            let _ = kill_process(engine, signal);
        }
        // One SIGCHLD may stand for several children.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == engine {
                let code = status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|n| 128 + n));
                return Ok(code
                    .and_then(|code| u8::try_from(code).ok())
                    .unwrap_or(u8::MAX));
            }
        }
    }
}
