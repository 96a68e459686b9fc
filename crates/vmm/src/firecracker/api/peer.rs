//! A scripted Firecracker for tests.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// As Firecracker's own HTTP server writes it, down to the missing reason.
pub(in crate::firecracker) const NO_CONTENT: &str =
    "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

pub(in crate::firecracker) fn with_body(status: u16, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// What the peer got.
#[derive(Debug, PartialEq)]
pub(in crate::firecracker) struct Got {
    pub(in crate::firecracker) line: String,
    pub(in crate::firecracker) head: String,
    pub(in crate::firecracker) body: Option<Value>,
}

/// Firecracker's side.
pub(in crate::firecracker) struct Peer {
    pub(in crate::firecracker) listener: UnixListener,
    _dir: Option<TempDir>,
}

impl Peer {
    pub(in crate::firecracker) fn listen(socket: &Path) -> Self {
        Self {
            listener: UnixListener::bind(socket).unwrap(),
            _dir: None,
        }
    }

    /// Keeps the directory for as long as the peer lives.
    pub(in crate::firecracker) fn holding(self, dir: TempDir) -> Self {
        Self {
            _dir: Some(dir),
            ..self
        }
    }

    pub(in crate::firecracker) async fn take(&self) -> (Got, UnixStream) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let end = loop {
            let count = stream.read_buf(&mut bytes).await.unwrap();
            assert!(count > 0, "the client closed before its request was whole");
            if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
                break end;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut body = bytes[end + 4..].to_vec();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let value = value.parse::<usize>();
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.unwrap())
        });
        while body.len() < length.unwrap_or(0) {
            assert!(stream.read_buf(&mut body).await.unwrap() > 0);
        }
        let got = Got {
            line: head.lines().next().unwrap().to_owned(),
            body: length.map(|_| serde_json::from_slice(&body).unwrap()),
            head: head.to_ascii_lowercase(),
        };
        (got, stream)
    }

    /// Takes one request, answers `with`, and closes.
    pub(in crate::firecracker) async fn serve(&self, with: &str) -> Got {
        let (got, mut stream) = self.take().await;
        // The client may have what it needs before all is written.
        let _ = stream.write_all(with.as_bytes()).await;
        got
    }
}
