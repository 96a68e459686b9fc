//! Moves a process's output from its pipes or terminal into [`Output`], and sees its end.
//!
//! ```text
//!   copying ── exit status comes ──► draining ── empty ──► finished ──► discarding until EOF
//!           (what is already in the pipe is still the process's)   (what it left behind may go
//!                                                                   on writing, unheard)
//! ```
//!
//! The exit is reported when the process has exited, even if something it started keeps the pipe
//! or the terminal open.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;

use cowslip_proto::limits::OUTPUT_HELD_BYTES;
use cowslip_proto::pb;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, oneshot};

use super::output::{Output, READ_BYTES};
use super::reaper::Exit;
use crate::sys;

/// Pipes of ended processes that something else still writes to, over all processes.
static LEFTOVERS: Semaphore = Semaphore::const_new(128);

/// Where a process's output comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Standard output and standard error.
    Pipes(AsyncFd<OwnedFd>, AsyncFd<OwnedFd>),
    /// The master side of a terminal, and its slave side: as long as that is open, reading the
    /// master never fails while the process runs.
    Pty(Arc<AsyncFd<OwnedFd>>, OwnedFd),
}

/// Registers a non-blocking file descriptor for reading.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    sys::watch(fd, Interest::READABLE)
}

/// Runs until the process and its output are over.
pub(crate) async fn run(
    source: Source,
    exit: oneshot::Receiver<Exit>,
    output: Arc<Output>,
    ended: impl FnOnce(),
) {
    let mut exit = pin!(async { exit.await.unwrap_or_default() });
    match source {
        Source::Pipes(out, err) => {
            let status = tokio::select! {
                status = &mut exit => status,
                ((), ()) = both(
                    copy(&out, pb::Stream::Stdout, &output),
                    copy(&err, pb::Stream::Stderr, &output),
                ) => exit.await,
            };
            both(
                drain(&out, pb::Stream::Stdout, &output, pipe_holds(&out)),
                drain(&err, pb::Stream::Stderr, &output, pipe_holds(&err)),
            )
            .await;
            output.finish(status);
            ended();
            if let Ok(_permit) = LEFTOVERS.try_acquire() {
                both(discard(&out), discard(&err)).await;
            }
        }
        Source::Pty(master, slave) => {
            let status = tokio::select! {
                status = &mut exit => status,
                () = copy(&master, pb::Stream::Stdout, &output) => exit.await,
            };
            drop(slave);
            // A terminal may hold more than it says.
            drain(&master, pb::Stream::Stdout, &output, OUTPUT_HELD_BYTES).await;
            output.finish(status);
            ended();
        }
    }
}

async fn both(a: impl Future<Output = ()>, b: impl Future<Output = ()>) -> ((), ()) {
    tokio::join!(a, b)
}

/// Copies until the end of the file. Loses nothing when it is dropped: between reading and
/// appending it never waits.
async fn copy(fd: &AsyncFd<OwnedFd>, stream: pb::Stream, output: &Output) {
    let mut buf = [0; READ_BYTES];
    loop {
        let Ok(mut ready) = fd.readable().await else {
            return;
        };
        output.room().await;
        match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buf[..])?)) {
            Ok(Ok(0)) => return,
            Ok(Ok(n)) => output.append(stream, &buf[..n]),
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => return,
            Err(_would_block) => {}
        }
    }
}

/// Takes in what is in the pipe now. Bounded: others may go on writing.
async fn drain(fd: &AsyncFd<OwnedFd>, stream: pb::Stream, output: &Output, most: usize) {
    let mut buf = [0; READ_BYTES];
    let mut left = most;
    while left > 0 {
        output.room().await;
        let part = left.min(buf.len());
        match rustix::io::read(fd, &mut buf[..part]) {
            Ok(n) if n > 0 => {
                output.append(stream, &buf[..n]);
                left -= n;
            }
            Err(Errno::INTR) => {}
            // Empty, at its end, or hung up.
            _ => return,
        }
    }
}

fn pipe_holds(fd: &AsyncFd<OwnedFd>) -> usize {
    rustix::io::ioctl_fionread(fd).map_or(0, |n| usize::try_from(n).unwrap_or(0))
}

async fn discard(fd: &AsyncFd<OwnedFd>) {
    let mut buf = [0; READ_BYTES];
    loop {
        let Ok(mut ready) = fd.readable().await else {
            return;
        };
        match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buf[..])?)) {
            Ok(Ok(0)) => return,
            Ok(Err(e)) if e.kind() != io::ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}
