//! An exec or run session: a WebSocket on one side, the engine's frames on the other.
//!
//! ```text
//!  client ─ text: request, ClientMessage ─►┐ control first ┌─► engine
//!         ─ binary: standard input ───────►┘ then input ───┘
//!         ◄─ text: ServerMessage · binary: output ◄────────── engine
//! ```
//!
//! Both directions stand still while the other side does not read. Input that the process does not
//! read is kept up to a bound, so that a client which minds `StdinTaken` never has a signal wait
//! behind it. A client that goes away drops the engine's end: the engine decides what that means.

use std::collections::VecDeque;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::{BufMut, Bytes, BytesMut};
use cowslip_engine::{ClientFrame, ServerFrame};
use cowslip_model::api::{ClientMessage, ErrorBody, ErrorCode, ServerMessage, channel};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::error::ApiError;
use crate::shutdown::Shutdown;

/// The longest message of a client, in bytes.
pub(crate) const MESSAGE_MAX: usize = 1 << 20;
/// Input that may wait for the process, in bytes. A client may have this much on the way.
const WINDOW: usize = 256 << 10;
/// Messages about the session that may wait.
const CONTROL_MAX: usize = 64;
/// How long a client may take to say what it wants.
const REQUEST_BOUND: Duration = Duration::from_secs(30);

/// The error of a client that does not keep to the protocol.
fn invalid(message: impl Into<String>) -> ErrorBody {
    ApiError::new(ErrorCode::Invalid, message).into_parts().1
}

/// Reads the request, the first message of a session.
pub(crate) async fn request<T: DeserializeOwned>(socket: &mut WebSocket) -> Result<T, ErrorBody> {
    let first = async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map_err(|error| invalid(format!("read the request: {error}")));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => {
                    return Err(invalid(
                        "the first message of a session must be its request",
                    ));
                }
            }
        }
    };
    match tokio::time::timeout(REQUEST_BOUND, first).await {
        Ok(result) => result,
        Err(_) => Err(invalid("the session's request did not come in time")),
    }
}

/// Ends a session that has not begun.
pub(crate) async fn refuse(mut socket: WebSocket, error: ErrorBody) {
    // A client that is gone needs no answer.
    let _ = socket.send(text(&ServerMessage::Failed { error })).await;
    let _ = socket.send(Message::Close(None)).await;
}

/// Carries a session until the engine has said its last word, or the client is gone.
pub(crate) async fn carry(
    socket: WebSocket,
    to_engine: mpsc::Sender<ClientFrame>,
    from_engine: mpsc::Receiver<ServerFrame>,
    shutdown: &Shutdown,
) {
    let (mut sink, stream) = socket.split();
    let (taken, seen) = watch::channel(0);
    let last = {
        let said = say(&mut sink, from_engine, seen);
        let heard = Listener::new(stream, to_engine, taken).run();
        tokio::select! {
            biased;
            () = said => None,
            heard = heard => match heard {
                Heard::Gone => return,
                Heard::Nonsense(error) => Some(error),
            },
            () = shutdown.begun() => Some(
                ApiError::new(ErrorCode::Conflict, "the engine is ending")
                    .hint("the next command starts a new one; sandboxes keep running")
                    .into_parts()
                    .1,
            ),
        }
    };
    if let Some(error) = last {
        // The client may be gone by now.
        let _ = sink.send(text(&ServerMessage::Failed { error })).await;
    }
    let _ = sink.send(Message::Close(None)).await;
}

fn text(message: &ServerMessage) -> Message {
    let text = serde_json::to_string(message).unwrap_or_else(|error| {
        tracing::error!(%error, "encode a message");
        String::new()
    });
    Message::Text(text.into())
}

fn binary(channel: u8, bytes: &Bytes) -> Message {
    let mut framed = BytesMut::with_capacity(bytes.len() + 1);
    framed.put_u8(channel);
    framed.put_slice(bytes);
    Message::Binary(framed.freeze())
}

/// Sends what the engine says until it says no more, or nobody listens.
async fn say(
    sink: &mut SplitSink<WebSocket, Message>,
    mut from_engine: mpsc::Receiver<ServerFrame>,
    mut taken: watch::Receiver<u64>,
) {
    let mut counting = true;
    loop {
        let message = tokio::select! {
            frame = from_engine.recv() => match frame {
                Some(ServerFrame::Stdout(bytes)) => binary(channel::STDOUT, &bytes),
                Some(ServerFrame::Stderr(bytes)) => binary(channel::STDERR, &bytes),
                Some(ServerFrame::Message(message)) => text(&message),
                None => return,
            },
            changed = taken.changed(), if counting => {
                if changed.is_err() {
                    counting = false;
                    continue;
                }
                text(&ServerMessage::StdinTaken { bytes: *taken.borrow_and_update() })
            }
        };
        if sink.send(message).await.is_err() {
            // The other direction finds out that the client is gone.
            return std::future::pending().await;
        }
    }
}

/// How listening ended.
enum Heard {
    /// The client is gone.
    Gone,
    /// The client does not keep to the protocol.
    Nonsense(ErrorBody),
}

struct Listener {
    stream: SplitStream<WebSocket>,
    to_engine: Option<mpsc::Sender<ClientFrame>>,
    control: VecDeque<ClientFrame>,
    input: VecDeque<ClientFrame>,
    waiting: usize,
    taken: watch::Sender<u64>,
}

impl Listener {
    fn new(
        stream: SplitStream<WebSocket>,
        to_engine: mpsc::Sender<ClientFrame>,
        taken: watch::Sender<u64>,
    ) -> Self {
        Self {
            stream,
            to_engine: Some(to_engine),
            control: VecDeque::new(),
            input: VecDeque::new(),
            waiting: 0,
            taken,
        }
    }

    async fn run(mut self) -> Heard {
        loop {
            let full = self.waiting > WINDOW || self.control.len() >= CONTROL_MAX;
            let something = !self.control.is_empty() || !self.input.is_empty();
            tokio::select! {
                message = self.stream.next(), if !full => {
                    let Some(Ok(message)) = message else { return Heard::Gone };
                    match self.hear(message) {
                        Ok(true) => {}
                        Ok(false) => return Heard::Gone,
                        Err(error) => return Heard::Nonsense(error),
                    }
                }
                place = place(self.to_engine.clone()), if something => match place {
                    Some(place) => self.pass_on(place),
                    None => self.throw_away(),
                },
            }
        }
    }

    /// Passes one frame on: messages about the session go before input.
    fn pass_on(&mut self, place: mpsc::OwnedPermit<ClientFrame>) {
        let Some(frame) = self.control.pop_front().or_else(|| self.input.pop_front()) else {
            return;
        };
        if let ClientFrame::Stdin(bytes) = &frame {
            self.waiting -= bytes.len();
            let length = bytes.len() as u64;
            self.taken.send_modify(|taken| *taken += length);
        }
        place.send(frame);
    }

    /// The engine listens no more; that the client goes is still to be heard.
    fn throw_away(&mut self) {
        self.to_engine = None;
        self.control.clear();
        self.input.clear();
        self.waiting = 0;
    }

    /// Queues a message; false when it was the client's last.
    fn hear(&mut self, message: Message) -> Result<bool, ErrorBody> {
        let frame = match message {
            Message::Close(_) => return Ok(false),
            Message::Ping(_) | Message::Pong(_) => return Ok(true),
            Message::Binary(mut bytes) => {
                if bytes.is_empty() || bytes.split_to(1)[0] != channel::STDIN {
                    return Err(invalid(
                        "a binary message must begin with the channel of standard input",
                    ));
                }
                ClientFrame::Stdin(bytes)
            }
            Message::Text(text) => {
                let message: ClientMessage = serde_json::from_str(&text)
                    .map_err(|error| invalid(format!("read a message of the session: {error}")))?;
                match message {
                    ClientMessage::StdinEnd => ClientFrame::StdinEnd,
                    ClientMessage::Resize { size } => ClientFrame::Resize(size),
                    ClientMessage::Signal { signal } => ClientFrame::Signal(signal),
                }
            }
        };
        if self.to_engine.is_none() {
            return Ok(true);
        }
        match frame {
            ClientFrame::Stdin(bytes) => {
                self.waiting += bytes.len();
                self.input.push_back(ClientFrame::Stdin(bytes));
            }
            ClientFrame::StdinEnd => self.input.push_back(ClientFrame::StdinEnd),
            control => self.control.push_back(control),
        }
        Ok(true)
    }
}

/// Room for one frame to the engine; `None` when it listens no more.
async fn place(
    to_engine: Option<mpsc::Sender<ClientFrame>>,
) -> Option<mpsc::OwnedPermit<ClientFrame>> {
    to_engine?.reserve_owned().await.ok()
}
