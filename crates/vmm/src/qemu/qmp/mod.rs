//! The client of QEMU's control channel (QMP): commands with their answers, events, and descriptors
//! passed along with a command.
//!
//! ```text
//!   execute() ──request──►┌────────┐──line (+ SCM_RIGHTS)──► monitor
//!        ▲────answer──────│ driver │◄──lines────────────────
//!   subscribe() ◄─events──└────────┘
//! ```
//!
//! One task, the driver, owns the socket: a caller that is cancelled never leaves half a line behind.
//! When the channel breaks every waiting caller is told why, and so is each later one. The client
//! never reconnects and knows nothing of machines.

mod driver;
#[cfg(test)]
mod tests;
mod wire;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub(crate) use wire::Event;

/// How long the monitor may take to answer, in seconds. It answers at once but for commands that
/// drain disk I/O, on a host whose disk may be slow.
pub(crate) const ANSWER_BOUND_SECONDS: u64 = 60;

/// Commands that may wait to be written.
const REQUESTS: usize = 16;
/// Events kept for a subscriber that is slow; one that is slower still is told that it missed some.
const EVENTS: usize = 256;

/// A command that had no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QmpError {
    /// The monitor refused it.
    #[error("{command}: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The monitor's words.
        description: String,
    },
    /// The channel is broken: the monitor ended, or spoke nonsense.
    #[error("{0}")]
    Closed(String),
    /// No answer within [`ANSWER_BOUND_SECONDS`].
    #[error("{command}: no answer within {ANSWER_BOUND_SECONDS} s")]
    TimedOut {
        /// The command.
        command: &'static str,
    },
}

/// One command on its way.
struct Request {
    command: &'static str,
    arguments: Value,
    fd: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

/// A connected client. Clones share the connection; it closes with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    /// The driver holds the only strong one: when it ends, subscribers see the end.
    events: broadcast::WeakSender<Event>,
    closed: watch::Receiver<Option<Arc<str>>>,
}

impl Qmp {
    /// Connects to the socket at `path` and leaves the negotiation behind. The monitor need not
    /// listen yet as long as somebody bound the socket for it.
    pub(crate) async fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path).await.map_err(|error| {
            QmpError::Closed(format!("connect to \"{}\": {error}", path.display()))
        })?;
        Self::over(stream).await
    }

    /// The client over a connected stream.
    pub(crate) async fn over(stream: UnixStream) -> Result<Self, QmpError> {
        let (requests, queue) = mpsc::channel(REQUESTS);
        let (strong, _) = broadcast::channel(EVENTS);
        let events = strong.downgrade();
        let (told, closed) = watch::channel(None);
        let (greet, greeted) = oneshot::channel();
        tokio::spawn(driver::run(stream, queue, strong, greet, told));
        let client = Self {
            requests,
            events,
            closed,
        };
        match tokio::time::timeout(Duration::from_secs(ANSWER_BOUND_SECONDS), greeted).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(client.why_closed()),
            Err(_) => {
                return Err(QmpError::TimedOut {
                    command: "greeting",
                });
            }
        }
        client.execute("qmp_capabilities", json!({})).await?;
        Ok(client)
    }

    /// Runs one command and gives its answer.
    pub(crate) async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, None).await
    }

    /// Runs one command that takes a descriptor.
    pub(crate) async fn execute_with_fd(
        &self,
        command: &'static str,
        arguments: Value,
        fd: OwnedFd,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, Some(fd)).await
    }

    async fn request(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let request = Request {
                command,
                arguments,
                fd,
                reply,
            };
            if self.requests.send(request).await.is_err() {
                return Err(self.why_closed());
            }
            answer.await.unwrap_or_else(|_| Err(self.why_closed()))
        };
        tokio::time::timeout(Duration::from_secs(ANSWER_BOUND_SECONDS), exchange)
            .await
            .unwrap_or(Err(QmpError::TimedOut { command }))
    }

    /// Sends a command without waiting, for destructors. Lost where the channel is clogged or broken.
    pub(crate) fn post(&self, command: &'static str) {
        let (reply, _) = oneshot::channel();
        let _ = self.requests.try_send(Request {
            command,
            arguments: json!({}),
            fd: None,
            reply,
        });
    }

    /// Events from now on, until the channel breaks.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events
            .upgrade()
            .map_or_else(|| broadcast::channel(1).1, |sender| sender.subscribe())
    }

    /// Why the channel is broken.
    pub(crate) fn why_closed(&self) -> QmpError {
        let why = self
            .closed
            .borrow()
            .as_deref()
            .unwrap_or("the control channel is closed")
            .to_owned();
        QmpError::Closed(why)
    }
}
