//! Tells on stderr what a build does: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

pub(super) struct Steps {
    terminal: bool,
}

impl Steps {
    pub(super) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Announces a step.
    pub(super) fn step(&self, text: &str) {
        eprintln!("guest kernel: {text}");
    }

    /// Announces the end.
    pub(super) fn done(&self, elapsed: Duration) {
        eprintln!("guest kernel: built in {} s", elapsed.as_secs());
    }

    /// A count of about `expected` files.
    pub(super) fn files(&self, expected: u64) -> Files {
        let bar = if self.terminal {
            ProgressBar::new(expected)
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/~{len} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        Files {
            bar,
            terminal: self.terminal,
            expected,
            seen: 0,
        }
    }
}

pub(super) struct Files {
    bar: ProgressBar,
    terminal: bool,
    expected: u64,
    seen: u64,
}

impl Files {
    /// Counts one more file.
    pub(super) fn file(&mut self, name: &str) {
        self.seen += 1;
        // The expectation is an estimate: the bar must not end before the build does.
        if self.seen > self.expected {
            self.bar.set_length(self.seen);
        }
        self.bar.set_position(self.seen);
        self.bar.set_message(name.to_owned());
        if !self.terminal && self.seen.is_multiple_of(500) {
            eprintln!(
                "guest kernel: {} of about {} files compiled",
                self.seen, self.expected
            );
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
