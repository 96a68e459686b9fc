//! The end of the guest: every process, then the disk, then the power.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cowslip_proto::pb::ShutdownReply;
use rustix::system::{RebootCommand, reboot};

use super::disk;
use crate::process::reaper::Children;
use crate::sys;

/// How long SIGKILL may take: only the kernel stands between it and the process.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// Longest grace a host may ask for.
const MAX_GRACE: Duration = Duration::from_secs(600);
/// Of a task in /proc/<pid>/stat: a thread of the kernel.
const PF_KTHREAD: u64 = 0x0020_0000;

/// Ends everything and makes the disk safe; only the power remains to be cut.
pub(crate) async fn settle(children: &Children, grace: Duration) -> ShutdownReply {
    // ESRCH says that there is nobody: the next step finds that out by itself.
    let _ = sys::kill(-1, libc::SIGTERM);
    // A stopped process acts on SIGTERM only when it runs again.
    let _ = sys::kill(-1, libc::SIGCONT);
    let mut killed = 0;
    if !all_gone(children, grace.min(MAX_GRACE)).await {
        killed = userspace_processes();
        let _ = sys::kill(-1, libc::SIGKILL);
        all_gone(children, KILL_WAIT).await;
    }
    let clean = tokio::task::spawn_blocking(disk::quiesce)
        .await
        .unwrap_or(false);
    ShutdownReply { killed, clean }
}

/// PID 1 has no child left: every process of the guest is a descendant of it.
async fn all_gone(children: &Children, limit: Duration) -> bool {
    tokio::time::timeout(limit, children.none_left())
        .await
        .is_ok()
}

fn userspace_processes() -> u32 {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let running = pids.filter(|&pid| {
        pid != 1 && fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| is_userspace(&s))
    });
    u32::try_from(running.count()).unwrap_or(u32::MAX)
}

/// Reads state and flags behind the name, which may contain anything.
fn is_userspace(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return false;
    };
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().unwrap_or_default();
    let flags = fields
        .nth(5)
        .and_then(|f| f.parse::<u64>().ok())
        .unwrap_or(0);
    state != "Z" && flags & PF_KTHREAD == 0
}

/// Whether a reset is what ends this machine. Told once, by the kernel's command line.
static BY_RESET: AtomicBool = AtomicBool::new(false);

/// From now on the machine is ended by a reset: it has no power that could be cut, and its kernel
/// would stand still for ever.
pub(crate) fn end_by_reset() {
    BY_RESET.store(true, Ordering::Relaxed);
}

/// Cuts the power. Returns only when the kernel refuses.
pub(crate) fn power_off() -> io::Error {
    rustix::fs::sync();
    let way = if BY_RESET.load(Ordering::Relaxed) {
        RebootCommand::Restart
    } else {
        RebootCommand::PowerOff
    };
    match reboot(way) {
        Ok(()) => io::Error::other("the kernel did not power off"),
        Err(e) => e.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_the_kernel_and_zombies_do_not_count() {
        assert!(is_userspace("7 (a) b) S 1 7 7 0 -1 4194560 1 2"));
        assert!(!is_userspace("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0"));
        assert!(!is_userspace("9 (x) Z 1 7 7 0 -1 4194560 1 2"));
        assert!(!is_userspace("garbage"));
    }
}
