//! Looking at processes through `/proc`, without trusting what they say of themselves more than needed.

use std::io;
use std::path::Path;

use cowslip_model::{InstanceId, SandboxId};

use super::{ProcessIdentity, ProcessSpec, boot_id, mark};
use crate::error::HostError;

/// What `/proc/<pid>/stat` says.
pub(super) struct Stat {
    /// In clock ticks since boot.
    pub(super) start_time: u64,
    /// Its first thread has ended; others may be about to.
    pub(super) zombie: bool,
}

/// Reads a process' state; none where there is no such process.
pub(super) fn stat(pid: u32) -> io::Result<Option<Stat>> {
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
        zombie: matches!(*state, "Z" | "X"),
    }))
}

/// What became of a recorded process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It runs and bears its mark.
    Ours,
    /// It is ending: the kernel has taken its memory away, and with it its command line.
    Ending,
    /// It runs and bears another command line: nothing is believed of it any more.
    Unmarked,
    /// It ended; its pid is free or another process' now.
    Gone,
}

/// Compares what runs with what was recorded.
pub(super) fn look(spec: &ProcessSpec, identity: &ProcessIdentity) -> Result<Standing, HostError> {
    if identity.boot_id != boot_id() {
        return Ok(Standing::Gone);
    }
    let pid = identity.pid;
    let line = command_line(pid);
    // Read after the command line: if the process is still the same one now, the line was its own.
    let found = stat(pid).map_err(HostError::process("look at", pid))?;
    Ok(match found {
        Some(found) if found.start_time != identity.start_time => Standing::Gone,
        None => Standing::Gone,
        Some(found) if found.zombie || line.is_empty() => Standing::Ending,
        Some(_) if has_mark(&line, &spec.mark) => Standing::Ours,
        Some(_) => Standing::Unmarked,
    })
}

/// A process' command line; empty for one that is ending.
fn command_line(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Whether a command line carries the mark: alone, or as a value, `-name cowslip-…,process=…`. It
/// never is part of a longer word.
fn has_mark(line: &[u8], mark: &str) -> bool {
    let mark = mark.as_bytes();
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    line.windows(mark.len()).enumerate().any(|(at, window)| {
        window == mark
            && !line.get(at + mark.len()).is_some_and(inside)
            && !(at > 0 && line.get(at - 1).is_some_and(inside))
    })
}

/// A live process that was found by its mark.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) start_time: u64,
}

/// Live processes, other than this one, whose command line carries the mark.
pub(super) fn find(mark: &str) -> Result<Vec<Found>, HostError> {
    search(|line| has_mark(line, mark).then_some(()))
        .map(|found| found.into_iter().map(|(found, ())| found).collect())
}

/// Live processes that bear the mark of any sandbox of this instance: pid and sandbox.
pub(crate) fn find_all(instance: InstanceId) -> Result<Vec<(u32, SandboxId)>, HostError> {
    let prefix = format!("cowslip-{instance}-");
    let sandbox_in = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        let sandbox = text
            .split(prefix.as_str())
            .skip(1)
            .find_map(|rest| rest.get(..16)?.parse::<SandboxId>().ok())?;
        has_mark(line, &mark(instance, sandbox)).then_some(sandbox)
    };
    search(sandbox_in).map(|found| {
        found
            .into_iter()
            .map(|(found, id)| (found.pid, id))
            .collect()
    })
}

/// Live processes, other than this one, of whose command line `wanted` makes something.
fn search<T>(wanted: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<(Found, T)>, HostError> {
    let proc = Path::new("/proc");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc).map_err(HostError::path("list", proc))? {
        let entry = entry.map_err(HostError::path("list", proc))?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        if let Some(what) = wanted(&command_line(pid))
            && let Ok(Some(stat)) = stat(pid)
            && !stat.zombie
        {
            let start_time = stat.start_time;
            found.push((Found { pid, start_time }, what));
        }
    }
    Ok(found)
}

/// Whether the thread of that name of a process has a seccomp filter; none where it has no such thread (any
/// more).
///
/// # Errors
/// When the process has ended, or its threads cannot be listed.
pub fn thread_has_filter(pid: u32, name: &str) -> Result<Option<bool>, HostError> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let tasks = std::fs::read_dir(tasks).map_err(HostError::process("look at", pid))?;
    // A thread that ends meanwhile has no status; nor is it the one that is asked about.
    let statuses = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    Ok(filter_of(statuses, name))
}

/// What the kernel calls a filter, in a thread's status (proc(5)).
const SECCOMP_FILTER: &str = "2";

fn filter_of(statuses: impl IntoIterator<Item = String>, name: &str) -> Option<bool> {
    let field = |status: &str, field: &str, value: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(field));
        found.is_some_and(|found| found.trim() == value)
    };
    let mut named = statuses
        .into_iter()
        .filter(|status| field(status, "Name:", name));
    named
        .next()
        .map(|status| field(&status, "Seccomp:", SECCOMP_FILTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_of_that_name_counts() {
        let status = |name, mode| format!("Name:\t{name}\nSeccomp:\t{mode}\nSeccomp_filters:\t1\n");
        let api = |statuses: &[String]| filter_of(statuses.to_vec(), "fc_api");
        assert_eq!(
            api(&[status("firecracker", 0), status("fc_api", 2)]),
            Some(true)
        );
        assert_eq!(
            api(&[status("firecracker", 2), status("fc_api", 0)]),
            Some(false)
        );
        assert_eq!(api(&[status("firecracker", 2)]), None);
        assert!(thread_has_filter(u32::MAX / 2, "fc_api").is_err());
    }

    #[test]
    fn a_mark_is_a_whole_word() {
        let mark = "cowslip-00000000000000aa-00000000000000bb";
        for good in ["{}", "{},process=x", "guest={}", "-name\0{}\0-m"] {
            assert!(
                has_mark(good.replace("{}", mark).as_bytes(), mark),
                "{good}"
            );
        }
        for bad in ["{}cc", "x{}", "my-{}", "{}-old", ""] {
            assert!(!has_mark(bad.replace("{}", mark).as_bytes(), mark), "{bad}");
        }
    }

    #[test]
    fn a_stat_line_is_read() {
        let me = stat(std::process::id()).unwrap().unwrap();
        assert!(me.start_time > 0 && !me.zombie);
        assert!(stat(u32::MAX / 2).unwrap().is_none());
    }
}
