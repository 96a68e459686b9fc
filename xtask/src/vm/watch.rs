//! Watches a machine: what it tells, its end, a bound and signals to us, whichever comes first. When
//! this returns QEMU is gone.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::pin::pin;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use super::VmError;

/// How long QEMU may take to end when asked to; it gives the terminal back then.
const GRACE: Duration = Duration::from_secs(3);

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// QEMU ended.
    Exit(ExitStatus),
    /// Its time was up.
    Late,
    /// It told nothing at all for so long that it never will.
    Silent,
    /// We were told to end.
    Signal(Signal),
}

/// How long a machine may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// In all.
    pub(super) whole: Duration,
    /// Without a word from it.
    pub(super) silence: Duration,
}

/// Runs the machine, and gives each line that it writes to the pipe at `status`, which is made.
pub(super) fn run(
    qemu: Command,
    status: &Path,
    bounds: Bounds,
    on_line: impl FnMut(&str),
) -> Result<Ending, VmError> {
    let mode = Mode::RUSR | Mode::WUSR;
    mkfifoat(CWD, status, mode).map_err(|error| VmError::file("make", status)(error.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(VmError::Wait)?;
    runtime.block_on(watch(qemu, status, bounds, on_line))
}

async fn watch(
    qemu: Command,
    status: &Path,
    bounds: Bounds,
    on_line: impl FnMut(&str),
) -> Result<Ending, VmError> {
    let mut lines = Lines {
        part: Vec::new(),
        on_line,
    };
    // Also open to write, so that it has no end while QEMU has yet to open it.
    let reader = pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(status)
        .map_err(VmError::file("open", status))?;
    let kinds = [Signal::INT, Signal::TERM, Signal::HUP];
    let mut signals = Vec::new();
    for kind in kinds {
        let stream = signal(SignalKind::from_raw(kind.as_raw())).map_err(VmError::Wait)?;
        signals.push((kind, stream));
    }
    let program = qemu.get_program().to_string_lossy().into_owned();
    let mut command = tokio::process::Command::from(qemu);
    let spawned = command.kill_on_drop(true).spawn();
    let mut child = spawned.map_err(|source| VmError::Start { program, source })?;
    let mut late = pin!(tokio::time::sleep(bounds.whole));
    let mut silent = pin!(tokio::time::sleep(bounds.silence));
    let ending = loop {
        let told = std::future::poll_fn(|context| {
            let ready = signals
                .iter_mut()
                .find_map(|(kind, stream)| stream.poll_recv(context).is_ready().then_some(*kind));
            ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        });
        tokio::select! {
            ready = reader.readable() => {
                ready.map_err(VmError::Wait)?;
                let mut buffer = [0; 512];
                match reader.try_read(&mut buffer) {
                    Ok(count) => {
                        lines.take(&buffer[..count]);
                        silent.as_mut().reset(tokio::time::Instant::now() + bounds.silence);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(VmError::Wait(error)),
                }
            }
            status = child.wait() => break Ending::Exit(status.map_err(VmError::Wait)?),
            () = &mut late => break Ending::Late,
            () = &mut silent => break Ending::Silent,
            signal = told => break Ending::Signal(signal),
        }
    };
    end(&mut child).await?;
    // What it said last.
    let left = reader.into_nonblocking_fd().map_err(VmError::Wait)?;
    let mut text = Vec::new();
    // It ends by having no more, which is an error here.
    let _ = File::from(left).read_to_end(&mut text);
    lines.take(&text);
    Ok(ending)
}

/// Asks QEMU to end, then makes it.
async fn end(child: &mut Child) -> Result<(), VmError> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    // None: it ended by itself.
    let Some(pid) = pid else {
        return Ok(());
    };
    // Gone meanwhile: all the better.
    let _ = kill_process(pid, Signal::TERM);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        child.kill().await.map_err(VmError::Wait)?;
    }
    Ok(())
}

/// Puts lines together.
struct Lines<F> {
    part: Vec<u8>,
    on_line: F,
}

impl<F: FnMut(&str)> Lines<F> {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.part).into_owned();
                (self.on_line)(line.trim());
                self.part.clear();
            } else {
                self.part.push(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell script in place of QEMU; `$1` is the pipe.
    fn watched(script: &str, whole: Duration) -> (Ending, Vec<String>) {
        let bounds = Bounds {
            whole,
            silence: LONG,
        };
        within(script, bounds)
    }

    fn within(script: &str, bounds: Bounds) -> (Ending, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("status");
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&status);
        let mut lines = Vec::new();
        let ending = run(command, &status, bounds, |line| lines.push(line.to_owned())).unwrap();
        (ending, lines)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn every_line_is_heard_also_the_last() {
        let script = "echo up 1 >\"$1\"; printf 'status ' >\"$1\"; echo 7 >\"$1\"; exit 3";
        let (ending, lines) = watched(script, LONG);
        assert_eq!(lines, ["up 1", "status 7"]);
        let Ending::Exit(status) = ending else {
            panic!("{ending:?}");
        };
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn the_bound_ends_one_that_does_not_end() {
        let (ending, lines) = watched("echo up >\"$1\"; exec sleep 600", Duration::from_secs(1));
        assert_eq!((ending, lines), (Ending::Late, vec!["up".to_owned()]));
    }

    #[test]
    fn one_that_falls_silent_is_ended() {
        let bounds = Bounds {
            whole: LONG,
            silence: Duration::from_millis(600),
        };
        assert_eq!(within("exec sleep 600", bounds).0, Ending::Silent);
        let (ending, lines) = within("echo up >\"$1\"; exec sleep 600", bounds);
        assert_eq!((ending, lines.len()), (Ending::Silent, 1));
        let beats = "for beat in 1 2 3 4 5 6 7 8; do echo beat >\"$1\"; sleep 0.1; done";
        let (ending, lines) = within(beats, bounds);
        assert!(matches!(ending, Ending::Exit(_)), "{ending:?}");
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        let script = "trap '' TERM; echo $$ >\"$1\"; exec sleep 600";
        let (ending, lines) = watched(script, Duration::from_secs(1));
        assert_eq!(ending, Ending::Late);
        assert!(!Path::new("/proc").join(&lines[0]).exists());
    }
}
