//! One HTTP/2 connection over a given stream. It never reconnects: whoever owns the stream knows
//! what its end means.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::body::Body;

/// Flow-control window of one call: as much as a fast reader needs, little enough to hold.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Sends requests over the connection; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Http2 {
    sender: SendRequest<Body>,
}

impl Http2 {
    /// Starts HTTP/2 on `stream`. The receiver turns true (or closes) when the connection ends.
    pub(crate) async fn start<S>(stream: S) -> Result<(Self, watch::Receiver<bool>), hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(16 * 1024)
            .handshake(TokioIo::new(stream))
            .await?;
        let (ended, closed) = watch::channel(false);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the agent has ended");
            }
            ended.send_replace(true);
        });
        Ok((Self { sender }, closed))
    }
}

impl tower_service::Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // HTTP/2 queues requests by itself. That the connection has ended is for `call` to say:
        // from here it would reach the caller without its cause.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
