//! The engine's way to talk to the agent of one guest.
//!
//! Every unary call and every handshake has a time-out; streams end with the connection. A client
//! never reconnects by itself: a lost link means that the guest or its monitor is gone, or was
//! replaced, and that is for the engine to find out.

mod error;
mod exec;
mod files;
mod forward;
mod news;
mod stdin;
mod transport;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
pub use tonic::Code;
use tonic::{Request, Status};

pub use error::{CallError, ConnectError, ExecError};
pub use exec::{
    ExecEvent, ExecEvents, ExecSession, ExecStart, ExitStatus, ProcessControl, PtySize,
    new_process_id,
};
pub use files::{Chunks, Watch, WriteOptions};
pub use forward::{Acknowledge, ForwardReader, ForwardWriter};
pub use news::{Configure, GuestNetwork, Restore};
pub use stdin::StdinSink;

use crate::limits::{MAX_MESSAGE_BYTES, PROTOCOL};
use crate::{link, pb};
use pb::agent_client::AgentClient as Grpc;
use transport::Http2;

/// How long a unary call may take unless [`AgentClient::with_timeout`] says otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the hello of an agent that has answered the handshake may take: what has come so far is
/// the agent itself, so a longer silence is a session gone wrong, and another one is worth a try.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the agent of one guest. Clones share it; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct AgentClient {
    http2: Http2,
    closed: watch::Receiver<bool>,
    timeout: Duration,
}

impl AgentClient {
    /// Connects over a stream with no connections of its own (a virtio-serial port): begins a
    /// session on the link, starts HTTP/2 and waits for the agent's hello. May be called before
    /// the guest has booted; `timeout` covers everything.
    ///
    /// # Errors
    /// [`ConnectError`]; the stream is closed then.
    pub async fn connect_serial<S>(
        stream: S,
        timeout: Duration,
    ) -> Result<(Self, pb::HelloReply), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let connect = async {
            let session = link::connect(stream, timeout).await?;
            Self::start(session).await
        };
        connect_within(timeout, connect).await
    }

    /// Connects over a stream that is a connection of its own (vsock, unix socket).
    ///
    /// # Errors
    /// [`ConnectError`]; the stream is closed then.
    pub async fn connect_stream<S>(
        stream: S,
        timeout: Duration,
    ) -> Result<(Self, pb::HelloReply), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        connect_within(timeout, Self::start(stream)).await
    }

    async fn start<S>(stream: S) -> Result<(Self, pb::HelloReply), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (http2, closed) = Http2::start(stream).await.map_err(ConnectError::Http)?;
        let client = Self {
            http2,
            closed,
            timeout: CALL_TIMEOUT,
        };
        let first = client.with_timeout(HELLO_TIMEOUT);
        let hello = first.hello().await.map_err(ConnectError::Hello)?;
        if hello.protocol != PROTOCOL {
            return Err(ConnectError::Protocol {
                guest: hello.protocol,
                host: PROTOCOL,
            });
        }
        Ok((client, hello))
    }

    /// The same connection with another time-out for unary calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the sender is gone, and with it the connection.
        let _ = closed.wait_for(|ended| *ended).await;
    }

    /// Has the connection ended?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow() || self.closed.has_changed().is_err()
    }

    /// Who answers, how it booted, and what it was told last.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn hello(&self) -> Result<pb::HelloReply, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::HelloRequest { protocol: PROTOCOL });
        Ok(self
            .within("hello", grpc.hello(request))
            .await?
            .into_inner())
    }

    /// Sets a new guest up; its clock is set to the host's present time.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn configure(&self, with: Configure) -> Result<pb::ConfigureReply, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(with.into_pb(now_ns()));
        Ok(self
            .within("configure", grpc.configure(request))
            .await?
            .into_inner())
    }

    /// Tells a guest that it was restored; its clock is set to the host's present time.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn restored(&self, with: Restore) -> Result<pb::RestoredReply, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(with.into_pb(now_ns()));
        Ok(self
            .within("restored", grpc.restored(request))
            .await?
            .into_inner())
    }

    /// Brings the guest's clock to the host's, correcting for the way there and back; gives back
    /// by how much it was off, in nanoseconds. Steps only when it is off by more than `tolerance`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sync_clock(&self, tolerance: Duration) -> Result<i64, CallError> {
        let mut best: Option<(i64, i64)> = None;
        for _ in 0..3 {
            let before = now_ns();
            let guest = self.step_clock(0).await?;
            let after = now_ns();
            let trip = after.saturating_sub(before);
            let offset = (before.saturating_add(trip / 2)).saturating_sub(guest);
            if best.is_none_or(|(shortest, _)| trip < shortest) {
                best = Some((trip, offset));
            }
        }
        let offset = best.map_or(0, |(_, offset)| offset);
        if u128::from(offset.unsigned_abs()) > tolerance.as_nanos() {
            self.step_clock(offset).await?;
        }
        Ok(offset.saturating_neg())
    }

    async fn step_clock(&self, step_ns: i64) -> Result<i64, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::ClockRequest { step_ns });
        Ok(self
            .within("clock", grpc.clock(request))
            .await?
            .into_inner()
            .realtime_ns)
    }

    /// Writes the guest's file systems out.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sync(&self) -> Result<(), CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::SyncRequest {});
        self.within("sync", grpc.sync(request)).await.map(|_| ())
    }

    /// Ends every process (SIGTERM, after `grace` SIGKILL), writes the disk out and powers off.
    /// When this returns the disk is clean if the reply says so; the power goes when the
    /// connection is dropped, or shortly after. The call's time-out is extended by `grace`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn shutdown(&self, grace: Duration) -> Result<pb::ShutdownReply, CallError> {
        let patient = self.with_timeout(self.timeout.saturating_add(grace));
        let mut grpc = patient.grpc();
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let request = Request::new(pb::ShutdownRequest { grace_ms });
        Ok(patient
            .within("shutdown", grpc.shutdown(request))
            .await?
            .into_inner())
    }

    /// Memory, disk, load and cpu of the guest.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn metrics(&self) -> Result<pb::MetricsReply, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::MetricsRequest {});
        Ok(self
            .within("metrics", grpc.metrics(request))
            .await?
            .into_inner())
    }

    fn grpc(&self) -> Grpc<Http2> {
        // The authority is never looked at, but HTTP/2 requests must have one.
        let origin = http::Uri::from_static("http://agent");
        Grpc::with_origin(self.http2.clone(), origin)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn within<T>(
        &self,
        op: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) => Err(CallError::from_status(op, &status)),
            Err(_) => Err(CallError::Timeout {
                op,
                after: self.timeout,
            }),
        }
    }
}

async fn connect_within<T>(
    timeout: Duration,
    connect: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    match tokio::time::timeout(timeout, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(ConnectError::Timeout { after: timeout }),
    }
}

/// Nanoseconds since 1970 on the host.
fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}
