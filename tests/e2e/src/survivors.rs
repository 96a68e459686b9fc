//! What an instance left on the host: processes and files.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::PATIENCE;

/// Processes with one of `marks` in their command line, and that line.
pub(crate) fn processes(marks: &[String]) -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Gone meanwhile: no survivor.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if marks.iter().any(|mark| line.contains(mark.as_str())) {
            found.extend(Pid::from_raw(pid).map(|pid| (pid, line)));
        }
    }
    found
}

/// Devices of device-mapper with `instance` in their names, and loop devices over files below `state`.
pub(crate) fn devices(instance: &str, state: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
    {
        // Absent where it is another kind of device, or gone meanwhile.
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name));
        let name = read("dm/name").unwrap_or_default();
        if !instance.is_empty() && name.contains(instance) {
            found.push(name.trim().to_owned());
        }
        let file = read("loop/backing_file").unwrap_or_default();
        if Path::new(file.trim()).starts_with(state) {
            found.push(format!("{:?} over {}", entry.file_name(), file.trim()));
        }
    }
    found
}

/// Becomes readable when the process ends; none where it has.
pub(crate) fn watch(pid: Pid) -> Option<OwnedFd> {
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits for the end of a process.
pub(crate) fn wait(process: &OwnedFd) {
    let bound = Timespec::try_from(PATIENCE).unwrap();
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&bound)).unwrap();
    assert!(ended > 0, "a process does not end");
}

/// Kills a process and waits until it is gone.
pub(crate) fn kill(pid: Pid) {
    if let Some(process) = watch(pid) {
        let _ = pidfd_send_signal(&process, Signal::KILL);
        wait(&process);
    }
}

/// Every file and directory below the directories that hold objects, relative to `state`.
pub(crate) fn files(state: &Path, run: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let places = [
        "kernels",
        "templates",
        "layers",
        "checkpoints",
        "sandboxes",
        "scratch",
        "handles",
    ];
    for place in places
        .map(|place| state.join(place))
        .into_iter()
        .chain([run.join("vm"), run.join("net")])
    {
        walk(&place, &mut found);
    }
    found
}

fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    // Absent before the first engine.
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        found.insert(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}
