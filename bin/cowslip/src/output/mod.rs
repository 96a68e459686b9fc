//! Everything the user sees: data on standard output, messages on standard error.
//!
//! Nothing here panics because a reader went away: a closed pipe ends the command quietly.

pub(crate) mod networks;
pub(crate) mod progress;
pub(crate) mod table;
pub(crate) mod views;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::exit::{Failure, OUTPUT_CLOSED, one_line};

/// How a command shows its results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// As JSON.
    pub(crate) json: bool,
    /// Ids only, and no messages.
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints `value`: as JSON, or as `human` makes it.
    pub(crate) fn show<T: Serialize>(
        self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            json(value)
        } else {
            text(&human(value))
        }
    }

    /// Prints a list: as JSON, as ids, or as a table.
    pub(crate) fn list<T: Serialize>(
        self,
        items: &[T],
        id: impl Fn(&T) -> String,
        table: impl FnOnce(&[T]) -> table::Table,
    ) -> Result<(), Failure> {
        if self.json {
            json(&items)
        } else if self.quiet {
            text(&items.iter().map(|item| id(item) + "\n").collect::<String>())
        } else {
            text(&table(items).render(table::Style::of_stdout()))
        }
    }

    /// A message on standard error, unless only data was asked for.
    pub(crate) fn note(self, message: &str) {
        if !self.quiet {
            note(message);
        }
    }
}

/// Prints text as it is; it ends with a newline, or is a raw stream.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    raw(text.as_bytes())
}

/// Prints one line.
pub(crate) fn line(line: &str) -> Result<(), Failure> {
    raw(format!("{line}\n").as_bytes())
}

/// Prints a value as indented JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    line(&to_json(value)?)
}

/// A value as indented JSON.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::usage(format!("write the result as JSON: {error}")))
}

/// Prints bytes.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    write_all(io::stdout().lock(), bytes).map_err(|error| closed(&error, "standard output"))
}

/// Writes and flushes all of it, also to a descriptor that somebody made non-blocking: a terminal is
/// shared with whoever else has it open.
pub(crate) fn write_all(
    mut to: impl Write + std::os::fd::AsFd,
    mut bytes: &[u8],
) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let result = if bytes.is_empty() {
            to.flush().map(|()| 0)
        } else {
            to.write(bytes)
        };
        match result {
            Ok(0) if bytes.is_empty() => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::from_borrowed_fd(to.as_fd(), PollFlags::OUT)];
                poll(&mut fds, None)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The failure of a stream of ours that nobody reads, or whose disk is full.
pub(crate) fn closed(error: &io::Error, stream: &str) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::silent(OUTPUT_CLOSED)
    } else {
        Failure::io(format!("write to {stream}"), error)
    }
}

/// A message on standard error.
pub(crate) fn note(message: &str) {
    error_text(&format!("{}\n", one_line(message)));
}

/// Text on standard error. That nobody reads messages is no reason to fail.
pub(crate) fn error_text(text: &str) {
    let _ = write_all(io::stderr().lock(), text.as_bytes());
}

/// Shows a failure.
pub(crate) fn failure(failure: &Failure) {
    if !failure.error.message.is_empty() {
        error_text(&format!("{failure}\n"));
    }
}

/// Whether standard error is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}
