//! A session of `exec` or `run`: frames both ways. A client that is gone shows as a closed channel.

use bytes::Bytes;
use cowslip_model::api::{ServerMessage, WindowSize};
use tokio::sync::mpsc;

/// From the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// Standard input.
    Stdin(Bytes),
    /// Standard input has ended.
    StdinEnd,
    /// The window has a new size.
    Resize(WindowSize),
    /// Send this signal to the process.
    Signal(i32),
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

/// Both directions.
#[derive(Debug)]
pub struct Session {
    /// From the client; its end means that the client is gone.
    pub incoming: mpsc::Receiver<ClientFrame>,
    /// To the client.
    pub outgoing: mpsc::Sender<ServerFrame>,
}

impl Session {
    /// A session and the client's ends of it.
    #[must_use]
    pub fn pair() -> (Self, mpsc::Sender<ClientFrame>, mpsc::Receiver<ServerFrame>) {
        let (to_server, incoming) = mpsc::channel(16);
        let (outgoing, from_server) = mpsc::channel(64);
        (Self { incoming, outgoing }, to_server, from_server)
    }

    /// Sends; false when the client is gone.
    pub(crate) async fn send(&self, message: ServerMessage) -> bool {
        self.outgoing
            .send(ServerFrame::Message(message))
            .await
            .is_ok()
    }

    /// Resolves when the client is gone.
    pub(crate) async fn gone(&self) {
        self.outgoing.closed().await;
    }
}
