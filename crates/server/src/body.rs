//! Bodies that are streams: tar archives in, lines and bytes out.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::json_line;

/// Pieces of an upload that may wait.
const PIECES: usize = 8;
/// How long a client may go on sending what nobody reads any more.
const LINGER: Duration = Duration::from_secs(10);

/// An upload on its way: its pieces, and the task that takes them off the connection.
pub(crate) struct Upload {
    /// The pieces; an error where the client broke off.
    pub(crate) pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// Ends when the client has sent all, or is gone.
    pub(crate) intake: JoinHandle<()>,
}

/// Takes an upload off the connection, as fast as its pieces are read. Once nobody reads them it is
/// thrown away, so that an answer given early reaches a client that is still sending.
pub(crate) fn upload(body: Body) -> Upload {
    let (sender, pieces) = mpsc::channel(PIECES);
    let intake = tokio::spawn(async move {
        let mut stream: BodyDataStream = body.into_data_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(io::Error::other);
            let broken = piece.is_err();
            if !sender.is_closed() {
                // Closed meanwhile: the piece is thrown away.
                let _ = sender.send(piece).await;
            }
            if broken {
                return;
            }
        }
    });
    Upload { pieces, intake }
}

/// Waits for the rest of an upload to be thrown away, for a bounded time.
pub(crate) async fn linger(intake: JoinHandle<()>) {
    let abort = intake.abort_handle();
    if tokio::time::timeout(LINGER, intake).await.is_err() {
        abort.abort();
    }
}

/// An upload for code that blocks. Its end is the end of the body; a client that broke off is an
/// error, so that a part is never taken for the whole.
#[derive(Debug)]
pub(crate) struct UploadReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    broken: bool,
}

impl UploadReader {
    pub(crate) fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            broken: false,
        }
    }
}

impl Read for UploadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let broke_off = || {
            io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the client broke the upload off",
            )
        };
        if self.broken {
            return Err(broke_off());
        }
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(_)) => {
                    self.broken = true;
                    return Err(broke_off());
                }
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// An answer of JSON lines.
pub(crate) fn lines(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (
        kind,
        Body::from_stream(lines.map(Ok::<_, std::convert::Infallible>)),
    )
        .into_response()
}

/// An answer of bytes; an error in it breaks the answer off.
pub(crate) fn octets<E>(
    kind: &'static str,
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Response
where
    E: Into<axum::BoxError>,
{
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(pieces)).into_response()
}

/// A value as one JSON line.
pub(crate) fn line(value: &impl serde::Serialize) -> Bytes {
    json_line(value).into()
}

/// The pieces of a channel as a stream.
pub(crate) fn stream<T>(receiver: mpsc::Receiver<T>) -> ReceiverStream<T> {
    ReceiverStream::new(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: Vec<io::Result<Bytes>>) -> io::Result<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(8);
        for piece in pieces {
            sender.try_send(piece).unwrap();
        }
        drop(sender);
        let mut all = Vec::new();
        UploadReader::new(receiver)
            .read_to_end(&mut all)
            .map(|_| all)
    }

    #[test]
    fn an_upload_that_breaks_off_is_not_a_short_one() {
        // covers R34
        let piece = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        assert_eq!(
            read(vec![piece("ab"), piece(""), piece("c")]).unwrap(),
            b"abc"
        );
        let error = read(vec![piece("ab"), Err(io::Error::other("reset"))]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn what_nobody_reads_is_thrown_away() {
        let pieces = (0..1000).map(|_| Ok::<_, io::Error>(Bytes::from_static(b"x")));
        let Upload { pieces, intake } =
            upload(Body::from_stream(futures_util::stream::iter(pieces)));
        drop(pieces);
        linger(intake).await;
    }
}
