//! A session of `exec`, `run` or `forward`: frames both ways. A client that is gone shows as a closed channel.

use bytes::Bytes;
use cowslip_model::api::{ServerMessage, WindowSize};
use tokio::sync::mpsc;

use crate::error::EngineError;

/// From the client, besides standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlFrame {
    /// The window has a new size.
    Resize(WindowSize),
    /// Send this signal to the process.
    Signal(i32),
    /// So many bytes of a forwarded connection were taken.
    Taken(u64),
}

/// To the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    /// Something about the session.
    Message(ServerMessage),
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
}

/// What comes from the client. Two queues: a signal never waits behind input that the process does
/// not read.
#[derive(Debug)]
pub struct Incoming {
    /// Standard input; it has ended when the channel has. It ends too when the client is gone: `outgoing` is closed
    /// before it then.
    pub input: mpsc::Receiver<Bytes>,
    /// Everything else.
    pub control: mpsc::Receiver<ControlFrame>,
}

/// Both directions.
#[derive(Debug)]
pub struct Session {
    /// From the client.
    pub incoming: Incoming,
    /// To the client; its end means that the client is gone.
    pub outgoing: mpsc::Sender<ServerFrame>,
}

/// The client's ends of a session.
#[derive(Debug)]
pub struct ClientEnd {
    /// Standard input; dropped when it has ended.
    pub input: mpsc::Sender<Bytes>,
    /// Everything else.
    pub control: mpsc::Sender<ControlFrame>,
    /// What the engine says; dropped when the client is gone.
    pub outgoing: mpsc::Receiver<ServerFrame>,
}

impl Session {
    /// A session and the client's ends of it.
    #[must_use]
    pub fn pair() -> (Self, ClientEnd) {
        let (to_input, input) = mpsc::channel(4);
        let (to_control, control) = mpsc::channel(16);
        let (outgoing, from_server) = mpsc::channel(64);
        let incoming = Incoming { input, control };
        let client = ClientEnd {
            input: to_input,
            control: to_control,
            outgoing: from_server,
        };
        (Self { incoming, outgoing }, client)
    }

    /// Sends; false when the client is gone.
    pub(crate) async fn send(&self, message: ServerMessage) -> bool {
        self.outgoing
            .send(ServerFrame::Message(message))
            .await
            .is_ok()
    }

    /// The last word of a session: the exit code, or why it failed. None: there is nothing more to say.
    pub(crate) async fn end(
        outgoing: &mpsc::Sender<ServerFrame>,
        outcome: Result<Option<i32>, EngineError>,
    ) {
        let last = match outcome {
            Ok(Some(code)) => ServerMessage::Exited { code },
            Ok(None) => return,
            Err(error) => ServerMessage::Failed {
                error: error.body(),
            },
        };
        // A client that is gone wants no last word.
        let _ = outgoing.send(ServerFrame::Message(last)).await;
    }

    /// Resolves when the client is gone.
    pub(crate) async fn gone(&self) {
        self.outgoing.closed().await;
    }
}
