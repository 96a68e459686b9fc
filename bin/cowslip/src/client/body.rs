//! Bodies of requests: nothing, JSON, or a stream whose length nobody knows.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use cowslip_model::api::ErrorCode;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::exit::Failure;

/// A request's body.
#[derive(Debug)]
pub(super) struct Body {
    inner: UnsyncBoxBody<Bytes, io::Error>,
    /// What it is.
    pub(super) content_type: &'static str,
}

/// No body.
pub(super) fn empty() -> Body {
    let inner = Empty::new().map_err(never).boxed_unsync();
    Body {
        inner,
        content_type: "application/json",
    }
}

/// A value as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Body, Failure> {
    let bytes = serde_json::to_vec(value).map_err(|error| {
        Failure::new(ErrorCode::Internal, format!("write the request: {error}"))
    })?;
    let inner = Full::from(bytes).map_err(never).boxed_unsync();
    Ok(Body {
        inner,
        content_type: "application/json",
    })
}

fn never(impossible: Infallible) -> io::Error {
    match impossible {}
}

/// What is sent while the answer is already being read: a bounded queue of pieces. An error in it
/// breaks the request off, so that a part is never taken for the whole.
#[derive(Debug)]
pub(crate) struct Upload(pub(crate) mpsc::Receiver<io::Result<Bytes>>);

impl From<Upload> for Body {
    fn from(upload: Upload) -> Self {
        let frames = ReceiverStream::new(upload.0).map(|piece| piece.map(Frame::data));
        let inner = StreamBody::new(frames).boxed_unsync();
        Self {
            inner,
            content_type: "application/x-tar",
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.inner.size_hint()
    }
}
