//! Connections: the virtio-serial link, vsock, and for tests a unix socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cowslip_proto::limits::{BELL_PORT, MAX_CALLS, MAX_MESSAGE_BYTES, VSOCK_PORT};
use cowslip_proto::link;
use cowslip_proto::pb::agent_server::AgentServer;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::port::Port;
use crate::service::Service;

/// Connections at once over vsock. The engine has one: when there are as many, the oldest go. A save of the machine
/// takes connections from the host's side without a word, and the guest need not notice.
const MAX_CONNECTIONS: usize = 8;
/// What one call may have in flight, and what all may together, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 128 * 1024;
/// How long the answer to `shutdown` may take to leave the guest.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Serves connections; knows how many there are.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    service: Service,
    open: Arc<watch::Sender<usize>>,
}

impl Server {
    pub(crate) fn new(service: Service) -> Self {
        Self {
            service,
            open: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Serves one connection until it ends.
    async fn connection<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _counted = Counted::new(&self.open);
        let grpc = AgentServer::new(self.service.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .max_concurrent_streams(MAX_CALLS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(16 * 1024);
        // How a connection ends is the host's business: it comes back if it wants to.
        let _ = http2
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(grpc))
            .await;
    }

    /// Serves sessions of the link over a virtio-serial port, one at a time.
    ///
    /// # Errors
    /// When the port fails.
    pub(crate) async fn port(&self, port: OwnedFd) -> io::Result<()> {
        self.link(Port::new(port)?).await
    }

    /// Serves sessions of the link over any stream.
    async fn link<S>(&self, raw: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mut sessions, drive) = link::listen(raw);
        let accept = async {
            while let Some(session) = sessions.accept().await {
                let server = self.clone();
                // Not awaited: the end of a lost session must not delay the next one.
                tokio::spawn(async move { server.connection(session).await });
            }
        };
        let (ended, ()) = tokio::join!(drive, accept);
        ended
    }

    /// Serves plain HTTP/2 over vsock.
    ///
    /// # Errors
    /// When nothing can be accepted (any more).
    pub(crate) async fn vsock(&self) -> io::Result<()> {
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, VSOCK_PORT))?;
        tokio::spawn(ring());
        let mut open = Newest::default();
        loop {
            let (stream, _) = listener.accept().await?;
            let server = self.clone();
            open.spawn(async move { server.connection(stream).await });
        }
    }

    /// Serves a unix socket: HTTP/2, or the link where `framed`.
    ///
    /// # Errors
    /// When nothing can be accepted (any more).
    pub(crate) async fn unix(&self, path: &Path, framed: bool) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let server = self.clone();
            tokio::spawn(async move {
                if framed {
                    let _ = server.link(stream).await;
                } else {
                    server.connection(stream).await;
                }
            });
        }
    }

    /// Waits until the last answers have left: no connection is open, or the time is up.
    pub(crate) async fn last_words(&self) {
        let mut open = self.open.subscribe();
        let _ = tokio::time::timeout(LAST_WORDS, open.wait_for(|&n| n == 0)).await;
    }
}

/// Tells a host that waits for it that there is a listener now. One that does not wait has nobody there.
async fn ring() {
    let _ = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, BELL_PORT)).await;
}

/// The newest [`MAX_CONNECTIONS`]; a further one ends the oldest.
#[derive(Debug, Default)]
struct Newest(VecDeque<AbortHandle>);

impl Newest {
    fn spawn(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.0.retain(|open| !open.is_finished());
        while self.0.len() >= MAX_CONNECTIONS {
            if let Some(oldest) = self.0.pop_front() {
                oldest.abort();
            }
        }
        self.0.push_back(tokio::spawn(connection).abort_handle());
    }
}

/// One open connection.
struct Counted(Arc<watch::Sender<usize>>);

impl Counted {
    fn new(open: &Arc<watch::Sender<usize>>) -> Self {
        open.send_modify(|n| *n += 1);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn of_too_many_connections_the_oldest_end() {
        let mut open = Newest::default();
        let mut peers = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 2 {
            let (peer, end) = oneshot::channel::<()>();
            open.spawn(async move { drop(end.await) });
            peers.push(peer);
        }
        for oldest in &mut peers[..2] {
            oldest.closed().await;
        }
        assert!(peers[2..].iter().all(|newer| !newer.is_closed()));
    }

    #[tokio::test]
    async fn a_connection_that_ended_takes_no_room() {
        let mut open = Newest::default();
        let (peer, end) = oneshot::channel::<()>();
        open.spawn(async move { drop(end.await) });
        for _ in 0..MAX_CONNECTIONS * 2 {
            open.spawn(async {});
            tokio::task::yield_now().await;
        }
        assert!(!peer.is_closed());
    }
}
