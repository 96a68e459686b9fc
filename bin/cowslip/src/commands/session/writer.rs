//! Writes a session's output, in order, in a thread of its own: a reader that is slow holds the
//! session back, and never the handling of signals.

use std::io;
use std::thread::JoinHandle;

use bytes::Bytes;
use cowslip_model::api::ErrorCode;
use tokio::sync::mpsc;

use crate::exit::Failure;
use crate::output;

/// Pieces that may wait.
const PIECES: usize = 8;

/// Where a piece goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Room for one piece.
pub(super) type Room = mpsc::OwnedPermit<(Stream, Bytes)>;

/// The thread.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<(Stream, Bytes)>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Writer {
    /// Starts it.
    pub(super) fn start() -> Self {
        let (queue, mut pieces) = mpsc::channel::<(Stream, Bytes)>(PIECES);
        let thread = std::thread::spawn(move || {
            while let Some((stream, bytes)) = pieces.blocking_recv() {
                match stream {
                    Stream::Stdout => output::write_all(io::stdout().lock(), &bytes)
                        .map_err(|error| output::closed(&error, "standard output"))?,
                    Stream::Stderr => output::write_all(io::stderr().lock(), &bytes)
                        .map_err(|error| output::closed(&error, "standard error"))?,
                }
            }
            Ok(())
        });
        Self {
            queue,
            thread: Some(thread),
        }
    }

    /// Room for one piece; `None` when the thread has failed.
    pub(super) async fn room(&self) -> Option<Room> {
        self.queue.clone().reserve_owned().await.ok()
    }

    /// Everything queued is written; or why not.
    pub(super) async fn drained(self) -> Result<(), Failure> {
        let Self { queue, thread } = self;
        drop(queue);
        let Some(thread) = thread else { return Ok(()) };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        match joined {
            Ok(Ok(result)) => result,
            _ => Err(Failure::new(
                ErrorCode::Internal,
                "write the command's output",
            )),
        }
    }
}
