//! An exec or run session: a WebSocket whose binary messages carry the streams of a process and
//! whose text messages carry everything else.

use bytes::{BufMut, Bytes, BytesMut};
use cowslip_model::api::{ClientMessage, ErrorCode, ServerMessage, channel};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::request::{error_of, unreadable};
use super::{Client, Path, VERSION, VERSION_HEADER};
use crate::exit::Failure;

type Socket = WebSocketStream<UnixStream>;

/// A session. Dropping it tells the engine that nobody is there any more.
#[derive(Debug)]
pub(crate) struct Session {
    /// What we say.
    pub(crate) sender: Sender,
    /// What the engine says.
    pub(crate) incoming: Incoming,
}

/// The half that speaks.
#[derive(Debug)]
pub(crate) struct Sender {
    sink: SplitSink<Socket, Message>,
}

/// The half that listens.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: SplitStream<Socket>,
    client: Client,
}

/// What the engine said.
#[derive(Debug)]
pub(crate) enum Said {
    /// Bytes of the process's standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// Something about the session.
    Message(ServerMessage),
}

impl Client {
    /// Opens the session at `path` with this request.
    pub(crate) async fn session(
        &self,
        path: Path,
        request: &impl Serialize,
    ) -> Result<Session, Failure> {
        let stream = self.connect().await?;
        let mut upgrade = format!("ws://cowslip{}", path.as_str())
            .into_client_request()
            .map_err(|error| self.broken(error))?;
        upgrade
            .headers_mut()
            .insert(VERSION_HEADER, http::HeaderValue::from_static(VERSION));
        let (socket, answer) = match client_async(upgrade, stream).await {
            Ok(pair) => pair,
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                return Err(error_of(answer.status(), body));
            }
            Err(error) => return Err(self.broken(error)),
        };
        self.compare_version(answer.headers());
        let (sink, stream) = socket.split();
        let mut sender = Sender { sink };
        if !sender.text(request).await? {
            return Err(self.broken("it closed the session before the request was sent"));
        }
        Ok(Session {
            sender,
            incoming: Incoming {
                stream,
                client: self.clone(),
            },
        })
    }
}

impl Sender {
    /// Sends a message about the session; false when the engine takes no more.
    pub(crate) async fn message(&mut self, message: &ClientMessage) -> Result<bool, Failure> {
        self.text(message).await
    }

    /// Sends bytes for standard input; false when the engine takes no more.
    pub(crate) async fn stdin(&mut self, bytes: &[u8]) -> bool {
        let mut framed = BytesMut::with_capacity(bytes.len() + 1);
        framed.put_u8(channel::STDIN);
        framed.put_slice(bytes);
        self.sink
            .send(Message::Binary(framed.freeze()))
            .await
            .is_ok()
    }

    async fn text(&mut self, value: &impl Serialize) -> Result<bool, Failure> {
        let text = serde_json::to_string(value).map_err(|error| {
            Failure::new(ErrorCode::Internal, format!("write the request: {error}"))
        })?;
        Ok(self.sink.send(Message::text(text)).await.is_ok())
    }
}

impl Incoming {
    /// What the engine says next; `None` when it has closed the session.
    pub(crate) async fn next(&mut self) -> Result<Option<Said>, Failure> {
        loop {
            match self.stream.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Err(error)) => return Err(self.client.broken(error)),
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map(|message| Some(Said::Message(message)))
                        .map_err(|error| unreadable(&error));
                }
                Some(Ok(Message::Binary(mut bytes))) if !bytes.is_empty() => {
                    match bytes.split_to(1)[0] {
                        channel::STDOUT => return Ok(Some(Said::Stdout(bytes))),
                        channel::STDERR => return Ok(Some(Said::Stderr(bytes))),
                        // A channel of a later version.
                        _ => {}
                    }
                }
                // Pings are answered below us.
                Some(Ok(_)) => {}
            }
        }
    }
}
