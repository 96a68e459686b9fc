//! What goes to the engine in a session: standard input, and before it every message about the
//! session.
//!
//! Input in flight is bounded, so that a signal never waits behind input that the process does not
//! read.

use std::io::Read;

use bytes::Bytes;
use cowslip_model::api::ClientMessage;
use tokio::sync::{mpsc, watch};

use crate::client::Sender;

/// Bytes of input that may be on the way to the guest.
const WINDOW: u64 = 256 << 10;
/// Bytes read at once.
const PIECE: usize = 32 << 10;
/// Messages about the session that may wait.
const MESSAGES: usize = 64;

/// The speaking half of a session, before the command has started.
#[derive(Debug)]
pub(super) struct Input {
    sender: Sender,
    messages: mpsc::Receiver<ClientMessage>,
}

impl Input {
    /// Input over `sender`, and the queue of messages about the session.
    pub(super) fn new(sender: Sender) -> (mpsc::Sender<ClientMessage>, Self) {
        let (queue, messages) = mpsc::channel(MESSAGES);
        (queue, Self { sender, messages })
    }

    /// Starts sending; with `stdin`, what standard input holds. The engine's word on how much it has
    /// taken goes into the channel given back.
    pub(super) fn start(self, stdin: bool) -> watch::Sender<u64> {
        let (taken, seen) = watch::channel(0);
        let pieces = stdin.then(read_stdin);
        tokio::spawn(send(self.sender, self.messages, pieces, seen));
        taken
    }
}

async fn send(
    mut sender: Sender,
    mut messages: mpsc::Receiver<ClientMessage>,
    mut pieces: Option<mpsc::Receiver<Bytes>>,
    mut taken: watch::Receiver<u64>,
) {
    let mut sent = 0_u64;
    loop {
        let room = sent.saturating_sub(*taken.borrow_and_update()) < WINDOW;
        let more = tokio::select! {
            biased;
            message = messages.recv() => match message {
                Some(message) => sender.message(&message).await.unwrap_or(false),
                None => false,
            },
            piece = next(&mut pieces), if room && pieces.is_some() => match piece {
                Some(bytes) => {
                    sent += bytes.len() as u64;
                    sender.stdin(&bytes).await
                }
                None => {
                    pieces = None;
                    sender.message(&ClientMessage::StdinEnd).await.unwrap_or(false)
                }
            },
            changed = taken.changed() => changed.is_ok(),
        };
        // The engine's own last words say why it takes no more.
        if !more {
            return;
        }
    }
}

async fn next(pieces: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match pieces {
        Some(pieces) => pieces.recv().await,
        None => None,
    }
}

/// Reads standard input in a thread of its own: a read cannot be taken back, and the process may end
/// in the middle of one.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (pieces, queue) = mpsc::channel(2);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let piece = Bytes::copy_from_slice(&buffer[..length]);
                    if pieces.blocking_send(piece).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    use rustix::event::{PollFd, PollFlags, poll};
                    let input = std::io::stdin();
                    let _ = poll(&mut [PollFd::new(&input, PollFlags::IN)], None);
                }
                // A terminal that hung up, or a directory: there is no more input.
                Err(_) => return,
            }
        }
    });
    queue
}
