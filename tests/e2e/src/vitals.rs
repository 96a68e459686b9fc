//! What the threads of a machine are doing whose guest does not answer: one that spins is told from one that waits.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Pid;

/// Between the two looks. Only a failure takes so long.
const APART: Duration = Duration::from_millis(500);

/// A thread: its name and state, and the ticks of processor time that it has had.
struct Thread {
    words: String,
    ticks: u64,
}

fn threads(pid: Pid) -> BTreeMap<PathBuf, Thread> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let paths = tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| task.path());
    paths
        .filter_map(|path| {
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            // The name is in parentheses and may have any in it.
            let (head, rest) = stat.rsplit_once(") ")?;
            let (_, name) = head.split_once(" (")?;
            let fields: Vec<&str> = rest.split(' ').collect();
            let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
            let waits = fs::read_to_string(path.join("wchan")).unwrap_or_default();
            let words = format!("{name}: {} {waits}", fields.first()?);
            let ticks = ticks(11)? + ticks(12)?;
            Some((path, Thread { words, ticks }))
        })
        .collect()
}

/// A line for each thread of a process.
pub(crate) fn of(pid: Pid) -> String {
    let before = threads(pid);
    std::thread::sleep(APART);
    let lines = threads(pid).into_iter().map(|(path, now)| {
        let had = before.get(&path).map_or(0, |before| before.ticks);
        let milliseconds = APART.as_millis();
        format!(
            "{}, {} ticks in {milliseconds} ms, {} in all",
            now.words,
            now.ticks - had,
            now.ticks
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}
