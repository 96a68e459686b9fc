//! Connections to ports of the guest's loopback.
//!
//! ```text
//!  ForwardWriter ── data, close ──►┐ one call ┌──► agent ──► 127.0.0.1:PORT
//!  ForwardReader ── taken ────────►┘          │
//!        ▲────────── data, close, taken ◄─────┘
//! ```
//!
//! Both ways are bounded by what the other side has said it took, so the reader is to be read at all
//! times, however slow whoever gets the data is.

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{AgentClient, CallError};
use crate::limits::{CHUNK_BYTES, FORWARD_WINDOW};
use crate::pb::ForwardChunk;

const OP: &str = "forward";
/// Chunks that wait for the link.
const DEPTH: usize = 4;

/// What goes to the guest. When both halves are dropped before the end, the connection is aborted.
#[derive(Debug)]
pub struct ForwardWriter {
    chunks: mpsc::Sender<ForwardChunk>,
    sent: u64,
    /// Bytes that the agent has taken.
    taken: watch::Receiver<u64>,
}

impl ForwardWriter {
    /// Writes; waits while the guest does not read.
    ///
    /// # Errors
    /// [`CallError::LinkLost`] when the call has ended; the reader says why.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), CallError> {
        while !data.is_empty() {
            let sent = self.sent;
            let room = |taken: &u64| sent.saturating_sub(*taken) < FORWARD_WINDOW;
            let taken = self.taken.wait_for(room).await.map(|taken| *taken);
            let window = FORWARD_WINDOW - sent.saturating_sub(taken.map_err(|_| lost())?);
            let window = usize::try_from(window).unwrap_or(CHUNK_BYTES);
            let part = data.split_to(data.len().min(CHUNK_BYTES).min(window));
            self.sent += part.len() as u64;
            let chunk = ForwardChunk {
                data: part,
                ..Default::default()
            };
            self.chunks.send(chunk).await.map_err(|_| lost())?;
        }
        Ok(())
    }

    /// Waits until the guest's side has taken all that was written.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn all_taken(&mut self) -> Result<(), CallError> {
        let sent = self.sent;
        let all = self.taken.wait_for(|taken| *taken >= sent).await;
        all.map(drop).map_err(|_| lost())
    }

    /// Nothing more goes to the guest: it reads to the end of what was written.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn close(self) -> Result<(), CallError> {
        let chunk = ForwardChunk {
            close: true,
            ..Default::default()
        };
        self.chunks.send(chunk).await.map_err(|_| lost())
    }
}

/// What comes from the guest.
#[derive(Debug)]
pub struct ForwardReader {
    stream: Streaming<ForwardChunk>,
    chunks: mpsc::Sender<ForwardChunk>,
    /// Bytes that came, and that were said to be taken.
    received: u64,
    passed_on: watch::Sender<u64>,
    taken: watch::Sender<u64>,
    closed: bool,
    // Holds the connection open for as long as somebody listens.
    _client: AgentClient,
}

impl ForwardReader {
    /// What the guest sends next; `None` when it has sent all. Cancel safe.
    ///
    /// # Errors
    /// [`CallError::Refused`] with [`Code::Aborted`] when the guest broke the connection off, or with
    /// [`Code::ResourceExhausted`] when it sends more than it may; [`CallError::LinkLost`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        while !self.closed {
            let Some(chunk) = self.message().await? else {
                return Err(lost());
            };
            self.closed = chunk.close;
            if chunk.data.is_empty() {
                continue;
            }
            self.received += chunk.data.len() as u64;
            if self.received - *self.passed_on.borrow() > FORWARD_WINDOW {
                return Err(CallError::Refused {
                    op: OP,
                    code: Code::ResourceExhausted,
                    message: "the guest sends more than it may".to_owned(),
                });
            }
            return Ok(Some(chunk.data));
        }
        Ok(None)
    }

    /// Waits for the proper end of the connection, after the guest has sent all and has taken all.
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn finished(&mut self) -> Result<(), CallError> {
        while self.message().await?.is_some() {}
        Ok(())
    }

    /// Tells the agent what whoever gets the data has taken.
    #[must_use]
    pub fn acknowledge(&self) -> Acknowledge {
        Acknowledge {
            chunks: self.chunks.clone(),
            passed_on: self.passed_on.clone(),
        }
    }

    async fn message(&mut self) -> Result<Option<ForwardChunk>, CallError> {
        let message = self.stream.message().await;
        let message = message.map_err(|status| CallError::from_status(OP, &status))?;
        if let Some(chunk) = message.as_ref().filter(|chunk| chunk.taken > 0) {
            self.taken.send_replace(chunk.taken);
        }
        Ok(message)
    }
}

/// Says how much was taken of what came from the guest.
#[derive(Debug)]
pub struct Acknowledge {
    chunks: mpsc::Sender<ForwardChunk>,
    passed_on: watch::Sender<u64>,
}

impl Acknowledge {
    /// So many bytes since the connection began. That it has ended meanwhile is for the reader to say.
    pub async fn taken(&self, bytes: u64) {
        self.passed_on.send_replace(bytes);
        let chunk = ForwardChunk {
            taken: bytes,
            ..Default::default()
        };
        let _ = self.chunks.send(chunk).await;
    }
}

fn lost() -> CallError {
    CallError::LinkLost { op: OP }
}

impl AgentClient {
    /// Connects to a port of 127.0.0.1 in the guest.
    ///
    /// # Errors
    /// [`CallError::Refused`] with [`Code::FailedPrecondition`] when nothing listens there.
    pub async fn forward(&self, port: u16) -> Result<(ForwardWriter, ForwardReader), CallError> {
        let (chunks, receiver) = mpsc::channel(DEPTH);
        let first = ForwardChunk {
            port: port.into(),
            ..Default::default()
        };
        chunks.send(first).await.map_err(|_| lost())?;
        let mut grpc = self.grpc();
        let call = grpc.forward(ReceiverStream::new(receiver));
        let stream = self.within(OP, call).await?.into_inner();
        let (taken, seen) = watch::channel(0);
        let writer = ForwardWriter {
            chunks: chunks.clone(),
            sent: 0,
            taken: seen,
        };
        let reader = ForwardReader {
            stream,
            chunks,
            received: 0,
            passed_on: watch::Sender::new(0),
            taken,
            closed: false,
            _client: self.clone(),
        };
        Ok((writer, reader))
    }
}
