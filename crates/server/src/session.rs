//! An exec, run or forward session: a WebSocket on one side, the engine's frames on the other.
//!
//! ```text
//!  client ─ text: request, ClientMessage ─►┐               ┌─► engine
//!         ─ binary: standard input ───────►┘ two queues ────┘
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
use cowslip_engine::{ClientEnd, ControlFrame, ServerFrame};
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
pub(crate) async fn carry(socket: WebSocket, engine: ClientEnd, shutdown: &Shutdown) {
    let ClientEnd {
        input,
        control,
        outgoing,
    } = engine;
    let (mut sink, stream) = socket.split();
    let (taken, seen) = watch::channel(0);
    let last = {
        let listener = Listener {
            stream,
            input: Queue::new(input),
            control: Queue::new(control),
            waiting: 0,
            ended: false,
            taken,
        };
        let heard = listener.run();
        // Dropped before `heard`: that nobody listens any more is known before the input's end.
        let said = say(&mut sink, outgoing, seen);
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
    input: Queue<Bytes>,
    control: Queue<ControlFrame>,
    /// Bytes in the queue of input.
    waiting: usize,
    /// No more input comes.
    ended: bool,
    taken: watch::Sender<u64>,
}

impl Listener {
    async fn run(mut self) -> Heard {
        loop {
            let full = self.waiting > WINDOW || self.control.items.len() >= CONTROL_MAX;
            tokio::select! {
                message = self.stream.next(), if !full => {
                    let Some(Ok(message)) = message else { return Heard::Gone };
                    match self.hear(message) {
                        Ok(true) => {}
                        Ok(false) => return Heard::Gone,
                        Err(error) => return Heard::Nonsense(error),
                    }
                }
                place = self.control.place(), if !self.control.items.is_empty() => {
                    self.control.pass_on(place);
                }
                place = self.input.place(), if !self.input.items.is_empty() => {
                    let length = self.input.items.front().map_or(0, Bytes::len);
                    if self.input.pass_on(place) {
                        self.waiting -= length;
                        self.taken.send_modify(|taken| *taken += length as u64);
                    } else {
                        self.waiting = 0;
                    }
                }
            }
            if self.ended && self.input.items.is_empty() {
                self.input.close();
            }
        }
    }

    /// Queues a message; false when it was the client's last.
    fn hear(&mut self, message: Message) -> Result<bool, ErrorBody> {
        match message {
            Message::Close(_) => return Ok(false),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(mut bytes) => {
                if bytes.is_empty() || bytes.split_to(1)[0] != channel::STDIN {
                    return Err(invalid(
                        "a binary message must begin with the channel of standard input",
                    ));
                }
                if !self.ended && self.input.is_open() {
                    self.waiting += bytes.len();
                    self.input.items.push_back(bytes);
                }
            }
            Message::Text(text) => {
                let message: ClientMessage = serde_json::from_str(&text)
                    .map_err(|error| invalid(format!("read a message of the session: {error}")))?;
                let frame = match message {
                    ClientMessage::StdinEnd => {
                        self.ended = true;
                        return Ok(true);
                    }
                    ClientMessage::OutputTaken { bytes } => ControlFrame::Taken(bytes),
                    ClientMessage::Resize { size } => ControlFrame::Resize(size),
                    ClientMessage::Signal { signal } => ControlFrame::Signal(signal),
                };
                if self.control.is_open() {
                    self.control.items.push_back(frame);
                }
            }
        }
        Ok(true)
    }
}

/// What waits for a place in a channel of the engine's.
struct Queue<T> {
    items: VecDeque<T>,
    /// None once the engine listens no more; that the client goes is still to be heard.
    channel: Option<mpsc::Sender<T>>,
}

impl<T> Queue<T> {
    fn new(channel: mpsc::Sender<T>) -> Self {
        Self {
            items: VecDeque::new(),
            channel: Some(channel),
        }
    }

    fn is_open(&self) -> bool {
        self.channel.is_some()
    }

    fn close(&mut self) {
        self.channel = None;
    }

    /// A place for one item; `None` when the engine listens no more.
    fn place(&self) -> impl Future<Output = Option<mpsc::OwnedPermit<T>>> + use<T> {
        let channel = self.channel.clone();
        async move { channel?.reserve_owned().await.ok() }
    }

    /// Passes the first item on; false when all had to be thrown away.
    fn pass_on(&mut self, place: Option<mpsc::OwnedPermit<T>>) -> bool {
        match (place, self.items.pop_front()) {
            (Some(place), Some(item)) => {
                place.send(item);
                true
            }
            _ => {
                self.close();
                self.items.clear();
                false
            }
        }
    }
}
