//! Failures of a real Firecracker on the real kernel. After each of them nothing is left but what was
//! there before, every sandbox says what it is, and the verb works when it is tried again.

mod devices;
mod images;
mod starts;

use std::path::{Path, PathBuf};

use cowslip_e2e::Instance;
use cowslip_model::SandboxState;
use cowslip_model::api::{Checkpoint, Sandbox};
use rustix::process::{Pid, Signal, kill_process};

use crate::firecracker::{JAIL, instance};

/// An instance whose Firecrackers are jailed; none, told loudly, where there is none.
fn jailed() -> Option<Instance> {
    instance(JAIL)
}

/// Runs "one", with something on its disk that was synced and something in its memory.
fn run_one(host: &Instance) {
    let _ = host.say("run -d --name one --memory 128M box").ok();
    let _ = host
        .sh("one", "echo kept >/root/f; echo in-memory >/run/g; sync")
        .ok();
}

fn assert_state(host: &Instance, name: &str, state: SandboxState) {
    let found = host.sandbox(name);
    assert_eq!(found.state, state, "{name}: {:?}", found.reason);
    assert_eq!(found.transition, None, "{name}");
}

/// What the sandbox says of its failure.
fn failed(host: &Instance, name: &str) -> String {
    assert_state(host, name, SandboxState::Failed);
    host.sandbox(name).reason.unwrap_or_default()
}

fn kept(host: &Instance, name: &str) {
    assert_eq!(host.sh(name, "cat /root/f").ok(), "kept", "{name}");
}

fn kept_with_memory(host: &Instance, name: &str) {
    let all = host.sh(name, "cat /root/f /run/g").ok();
    assert_eq!(all, "kept\nin-memory", "{name}");
}

fn monitor(host: &Instance, name: &str) -> Pid {
    let found: Sandbox = host.sandbox(name);
    let pid = found.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    pid.unwrap()
}

fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

/// The directory that the Firecracker of a sandbox saves to.
fn exchange(host: &Instance, name: &str) -> PathBuf {
    let id = host.sandbox(name).id.to_string();
    host.state().join("sandboxes").join(id).join("jail")
}

pub(crate) fn checkpoints(host: &Instance) -> Vec<Checkpoint> {
    host.say("checkpoint ls").json()
}

/// Control groups of this instance's machines.
fn groups(host: &Instance) -> Vec<PathBuf> {
    let instance = std::fs::read_to_string(host.state().join("instance")).unwrap();
    let mark = format!("cowslip-{}-", instance.trim());
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), &mark, &mut found);
    found
}

fn search(directory: &Path, mark: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(mark) {
            found.push(entry.path());
        }
        search(&entry.path(), mark, found);
    }
}

/// Nothing runs, and nothing is there but these files.
pub(crate) fn assert_nothing_but(host: &Instance, files: &std::collections::BTreeSet<PathBuf>) {
    host.assert_only(files);
    assert_eq!(groups(host), Vec::<PathBuf>::new());
}
