//! One call of the program: what it is given, and what became of it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::de::DeserializeOwned;

use crate::PATIENCE;

/// A call that is being prepared.
#[must_use]
pub struct Call {
    pub(crate) command: Command,
    stdin: Option<Vec<u8>>,
    keep_stdin: bool,
}

/// A call that has ended.
#[derive(Debug)]
pub struct Done {
    /// The command line.
    pub line: String,
    /// The exit code; -N where signal N ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// A call under way. One that is dropped is killed.
pub struct Running {
    line: String,
    child: Child,
    begun: Instant,
    stdout: Stream,
    stderr: Stream,
    feeder: Option<JoinHandle<()>>,
}

/// The bytes so far, and whether that is all.
type Shared = (Mutex<(Vec<u8>, bool)>, Condvar);

/// A stream that a thread reads, and what came so far.
struct Stream {
    shared: Arc<Shared>,
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new((Vec::new(), false)), Condvar::new()));
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let count = from.read(&mut buffer).unwrap_or(0);
                let mut state = theirs.0.lock().unwrap();
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                theirs.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Self { shared }
    }

    /// Waits until `enough` of the bytes so far, or the end; gives whether it was enough.
    fn wait_until(&self, enough: impl Fn(&[u8]) -> bool) -> bool {
        let state = self.shared.0.lock().unwrap();
        let (state, _) = self
            .shared
            .1
            .wait_timeout_while(state, PATIENCE, |(bytes, ended)| !enough(bytes) && !*ended)
            .unwrap();
        enough(&state.0)
    }

    fn so_far(&self) -> Vec<u8> {
        self.shared.0.lock().unwrap().0.clone()
    }

    fn all(&self) -> Vec<u8> {
        self.wait_until(|_| false);
        std::mem::take(&mut self.shared.0.lock().unwrap().0)
    }
}

impl Call {
    pub(crate) fn new(command: Command) -> Self {
        Self {
            command,
            stdin: None,
            keep_stdin: false,
        }
    }

    /// Adds a word.
    pub fn arg(mut self, word: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    /// Gives it these bytes on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Leaves its standard input open until it ends.
    pub fn open_stdin(mut self) -> Self {
        self.keep_stdin = true;
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn line(&self) -> String {
        let words: Vec<_> = self
            .command
            .get_args()
            .map(|word| word.to_string_lossy().chars().take(200).collect::<String>())
            .collect();
        format!("cowslip {}", words.join(" "))
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut self) -> Running {
        let line = self.line();
        let piped = self.stdin.is_some() || self.keep_stdin;
        let mut child = self
            .command
            .stdin(if piped { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start \"{line}\": {error}"));
        let feeder = self.stdin.map(|bytes| {
            let mut pipe = child.stdin.take().unwrap();
            std::thread::spawn(move || {
                // It may end without reading all of it.
                let _ = pipe.write_all(&bytes);
            })
        });
        Running {
            line,
            begun: Instant::now(),
            stdout: Stream::read(child.stdout.take().unwrap()),
            stderr: Stream::read(child.stderr.take().unwrap()),
            child,
            feeder,
        }
    }

    /// Starts it with a terminal as its standard input and output, which also becomes the controlling
    /// terminal of a session of its own.
    pub(crate) fn start_on(self, stdin: Stdio, stdout: Stdio) -> Running {
        let line = self.line();
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(self.command.get_program());
        command.args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start \"{line}\" on a terminal: {error}"));
        Running {
            line,
            begun: Instant::now(),
            stdout: Stream::read(std::io::empty()),
            stderr: Stream::read(child.stderr.take().unwrap()),
            child,
            feeder: None,
        }
    }

    /// Runs it to its end.
    pub fn run(self) -> Done {
        self.start().wait()
    }

    /// Runs it; it must succeed. Gives what it printed, without the last line's end.
    pub fn ok(self) -> String {
        self.run().ok()
    }

    /// Runs it with `--json`; it must succeed.
    pub fn json<T: DeserializeOwned>(mut self) -> T {
        self.command.arg("--json");
        self.run().json()
    }
}

impl Running {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until its standard output contains `text`.
    ///
    /// # Panics
    /// When it ends without.
    pub fn wait_for(&self, text: &str) {
        self.wait_in(&self.stdout, text);
    }

    /// The same of its standard error.
    ///
    /// # Panics
    /// When it ends without.
    pub fn wait_for_error(&self, text: &str) {
        self.wait_in(&self.stderr, text);
    }

    fn wait_in(&self, stream: &Stream, text: &str) {
        let found = stream.wait_until(|bytes| contains(bytes, text.as_bytes()));
        assert!(
            found,
            "\"{}\" never printed {text:?}, but {:?} and on standard error {:?}",
            self.line,
            String::from_utf8_lossy(&self.stdout.so_far()),
            String::from_utf8_lossy(&self.stderr.so_far()),
        );
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    /// Writes to its standard input, which [`Call::open_stdin`] left open.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Readable when it has ended.
    ///
    /// # Panics
    /// When it was waited for.
    #[must_use]
    pub fn end(&self) -> OwnedFd {
        pidfd_open(self.pid(), PidfdFlags::empty()).unwrap()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn wait(mut self) -> Done {
        // With a feeder it is the feeder's to close.
        drop(self.child.stdin.take());
        let status = self.wait_status();
        if let Some(feeder) = self.feeder.take() {
            feeder.join().unwrap();
        }
        Done {
            code: code(status),
            stdout: self.stdout.all(),
            stderr: String::from_utf8_lossy(&self.stderr.all()).into_owned(),
            took: self.begun.elapsed(),
            line: std::mem::take(&mut self.line),
        }
    }

    fn wait_status(&mut self) -> ExitStatus {
        let bound = Timespec::try_from(PATIENCE).unwrap();
        if let Ok(pidfd) = pidfd_open(self.pid(), PidfdFlags::empty()) {
            let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&bound)).unwrap();
            assert!(
                ended > 0,
                "\"{}\" has not ended; so far it printed {:?} and on standard error {:?}",
                self.line,
                String::from_utf8_lossy(&self.stdout.so_far()),
                String::from_utf8_lossy(&self.stderr.so_far()),
            );
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Absent after `wait`.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Done {
    /// It must have succeeded; gives what it printed, without the last line's end.
    ///
    /// # Panics
    /// When it failed.
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.text()
    }

    /// What it printed, without the last line's end.
    #[must_use]
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.stdout);
        text.strip_suffix('\n').unwrap_or(&text).to_owned()
    }

    /// It must have succeeded and printed this as JSON.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn json<T: DeserializeOwned>(self) -> T {
        assert_eq!(self.code, 0, "{self}");
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// It must have ended with this code.
    ///
    /// # Panics
    /// When it ended with another.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// It must be an error of the engine or of usage: exit code 125, nothing on standard output, and
    /// on standard error one clear line, with at most its causes and a hint below, that has all
    /// of `words`.
    ///
    /// # Panics
    /// When it is not.
    pub fn refused(self, words: &[&str]) -> Self {
        assert_eq!(self.code, 125, "{self}");
        assert!(self.stdout.is_empty(), "{self}");
        let mut lines = self.stderr.lines();
        let first = lines.next().unwrap_or_default();
        assert!(
            first.starts_with("cowslip: ") && first.len() < 400,
            "{self}"
        );
        for line in lines {
            assert!(
                line.starts_with("  because: ") || line.starts_with("  hint: "),
                "{self}"
            );
        }
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {self}");
        }
        for defect in ["panicked", "internal error", "os error", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(defect), "{self}");
        }
        self
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        write!(
            f,
            "\"{}\" ended with {} after {:?}\nstdout: {}\nstderr: {}",
            self.line,
            self.code,
            self.took,
            cut(&self.stdout),
            cut(self.stderr.as_bytes()),
        )
    }
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| -signal))
        .unwrap_or(i32::MIN)
}

pub(crate) fn contains(bytes: &[u8], text: &[u8]) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|window| window == text)
}
