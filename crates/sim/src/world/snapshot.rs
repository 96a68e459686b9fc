//! What there is, in a form that two moments can be compared by.

use std::collections::BTreeSet;
use std::path::Path;

use super::files::Node;
use super::{Inner, World};

/// Everything there is: one line each, without numbers that differ from run to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// What differs: `+` came, `-` went. Empty where nothing does.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let gone = self.0.difference(&later.0).map(|line| format!("- {line}"));
        let new = later.0.difference(&self.0).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }

    /// The lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The same without what lies below `path`.
    #[must_use]
    pub fn without(&self, path: &Path) -> Self {
        let below = format!("\"{}/", path.display());
        Self(
            self.0
                .iter()
                .filter(|line| !line.contains(&below))
                .cloned()
                .collect(),
        )
    }
}

impl World {
    /// What there is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        let mut lines = BTreeSet::new();
        for (path, entry) in &inner.entries {
            let kind = match &entry.node {
                Node::Directory => "directory",
                Node::Socket => "socket",
                Node::File(_) => "file",
            };
            lines.insert(format!("{kind} \"{}\"", path.display()));
        }
        lines.extend(
            inner
                .mounts
                .keys()
                .map(|target| format!("mount \"{}\"", target.display())),
        );
        lines.extend(process_lines(&inner));
        Snapshot(lines)
    }
}

/// A machine that came to a stop is another thing than one that runs.
fn process_lines(inner: &Inner) -> impl Iterator<Item = String> {
    inner.processes.values().map(|process| {
        let state = match &process.machine {
            None => "idle".to_owned(),
            Some(machine) => format!("{:?}", machine.state).to_lowercase(),
        };
        format!("process {} ({state})", process.mark)
    })
}
