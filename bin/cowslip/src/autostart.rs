//! Starts an engine in the background where none listens.
//!
//! ```text
//!            ┌─ ready ─────────────────────────────► connect
//!  spawn ────┼─ held by another ─► wait for it ─┬──► connect
//!            │                        (ended) ──┴──► spawn again
//!            └─ failed, or ended without a word ───► its reason
//! ```
//!
//! The child says over a pipe how it went, and the lock on the state directory decides who of
//! several engines stays: nothing here polls or guesses.

mod rival;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cowslip_host::Layout;
use cowslip_model::api::{ErrorBody, ErrorCode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::paths;

/// How long an engine may take to come up. It adopts running sandboxes and clears up after a crash
/// first.
const BOUND: Duration = Duration::from_secs(120);
/// A log longer than this is put aside first, in bytes.
const LOG_MAX: u64 = 8 << 20;
/// The longest readiness message, in bytes.
const MESSAGE_MAX: u64 = 1 << 20;

/// What an engine in the background says over its pipe, once, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Readiness {
    /// It listens.
    Ready,
    /// Another engine has the state directory.
    Held {
        /// What the lock says.
        error: ErrorBody,
    },
    /// It could not start.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// Makes sure that an engine listens. Blocks until it does.
pub(crate) fn ensure(layout: &Layout) -> Result<(), Failure> {
    paths::prepare(layout)?;
    let deadline = Instant::now() + BOUND;
    loop {
        match start(layout, deadline)? {
            Readiness::Ready => return Ok(()),
            Readiness::Failed { error } => return Err(error.into()),
            Readiness::Held { error } => match rival::wait(layout, deadline)? {
                rival::Rival::Listens => return Ok(()),
                rival::Rival::Ended => {}
                rival::Rival::Silent => {
                    return Err(Failure::from(error).hint(format!(
                        "it does not listen at \"{}\": it may have another --run-dir",
                        layout.api_socket().display()
                    )));
                }
            },
        }
    }
}

/// Starts an engine and reads what it says.
fn start(layout: &Layout, deadline: Instant) -> Result<Readiness, Failure> {
    let log = open_log(&layout.engine_log())?;
    cowslip_host::descriptors::keep_from_children()
        .map_err(|error| Failure::io("keep open files from the engine", &error))?;
    // Not by its path: that may be another program by now.
    let mut child = Command::new("/proc/self/exe")
        .arg0("cowslip")
        .arg("--state-dir")
        .arg(layout.state())
        .arg("--run-dir")
        .arg(layout.run())
        .args(["serve", "--background"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(|error| Failure::io("start the engine", &error))?;
    let Some(pipe) = child.stdout.take() else {
        return Err(Failure::new(
            ErrorCode::Internal,
            "start the engine: it has no pipe",
        ));
    };
    match read_line(pipe, deadline)? {
        Some(line) => serde_json::from_str(&line).map_err(|error| {
            Failure::new(
                ErrorCode::Internal,
                format!("read the new engine's answer: {error}"),
            )
        }),
        None => {
            let status = child
                .wait()
                .map_err(|error| Failure::io("wait for the engine", &error))?;
            let mut failure = Failure::new(
                ErrorCode::Internal,
                format!("the engine ended before it was ready ({status})"),
            )
            .hint(format!("its log: \"{}\"", layout.engine_log().display()));
            if let Some(line) = last_line(&layout.engine_log()) {
                failure = failure.because(line);
            }
            Err(failure)
        }
    }
}

/// The first line from the pipe; `None` at its end.
fn read_line(pipe: ChildStdout, deadline: Instant) -> Result<Option<String>, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let bound = Timespec::try_from(left).unwrap_or(Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    });
    let ready = loop {
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&bound)) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    match ready {
        Ok(0) => Err(Failure::new(
            ErrorCode::TimedOut,
            format!(
                "the engine was not ready within {} seconds",
                BOUND.as_secs()
            ),
        )),
        Ok(_) => {
            let mut line = String::new();
            BufReader::new(pipe.take(MESSAGE_MAX))
                .read_line(&mut line)
                .map_err(|error| Failure::io("read the new engine's answer", &error))?;
            Ok(if line.is_empty() { None } else { Some(line) })
        }
        Err(error) => Err(Failure::io("wait for the engine", &error.into())),
    }
}

/// Opens the log for appending; one that has grown long becomes `engine.log.1`.
fn open_log(path: &Path) -> Result<File, Failure> {
    let failed = |error| Failure::io(format!("open the log \"{}\"", path.display()), &error);
    if std::fs::metadata(path).is_ok_and(|found| found.len() > LOG_MAX) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        std::fs::rename(path, old).map_err(failed)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)
}

/// The last line of the log, for a message.
fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))
        .ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    tail.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .map(str::to_owned)
}
