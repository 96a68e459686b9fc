//! The agent's side of the link: waits for a host's handshake, as often as one comes.
//!
//! ```text
//!          SYN(n): answer SYNACK(n)
//!   idle ───────────────────────────► open(n) ──┐ SYN(m): n is lost, open(m)
//!    ▲                                  │  ▲────┘ SYN(n) again: SYNACK(n) again
//!    └──────────────────────────────────┘
//!      FIN, damage, hang-up, or the stream is dropped
//! ```
//!
//! It must never depend on being told that a host went away: after a restore a different host
//! finds an agent that still believes in the old session.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::driver::Link;
use super::frame::{Decoded, Decoder, Kind};
use super::session::{End, LinkStream, Session};

/// Sessions that hosts began; see [`listen`].
#[derive(Debug)]
pub struct Listener {
    slot: Arc<Slot>,
}

/// At most one session waits to be accepted: a newer one always replaces it.
#[derive(Debug, Default)]
struct Slot {
    next: Mutex<SlotState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct SlotState {
    stream: Option<LinkStream>,
    over: bool,
}

impl Slot {
    fn put(&self, stream: Option<LinkStream>, over: bool) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.over |= over;
        if stream.is_some() {
            next.stream = stream;
        }
        self.changed.notify_one();
    }
}

impl Listener {
    /// The next session; `None` when the raw stream has ended. Cancel safe.
    pub async fn accept(&mut self) -> Option<LinkStream> {
        loop {
            {
                let mut next = self
                    .slot
                    .next
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(stream) = next.stream.take() {
                    return Some(stream);
                }
                if next.over {
                    return None;
                }
            }
            self.slot.changed.notified().await;
        }
    }
}

/// Listens for hosts on a raw stream. The future moves the bytes; it must be polled (spawned) for
/// as long as sessions are wanted, and ends with the raw stream.
///
/// A raw stream that can tell a hang-up without ending reads an error of kind
/// [`io::ErrorKind::NotConnected`] once, and then goes on: the session is lost at once instead of
/// at the next handshake.
pub fn listen<S>(raw: S) -> (Listener, impl Future<Output = io::Result<()>> + Send)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let slot = Arc::new(Slot::default());
    let listener = Listener { slot: slot.clone() };
    let drive = async move {
        let link = Link::default();
        let (mut reader, mut writer) = tokio::io::split(raw);
        let read = link.read_loop(&mut reader, Decoder::default(), |decoded| {
            on_frame(&link, &slot, decoded);
            Ok(())
        });
        let write = link.write_loop(&mut writer, BytesMut::new(), false);
        let ended = tokio::select! {
            ended = read => ended,
            ended = write => ended,
        };
        link.end_session(End::Lost);
        slot.put(None, true);
        ended
    };
    (listener, drive)
}

fn on_frame(link: &Link, slot: &Slot, decoded: Decoded) {
    let frame = match decoded {
        Decoded::Frame(frame) => frame,
        // Bytes of the session are missing: what follows must not be taken for what came before.
        Decoded::Garbage => {
            let mut state = link.lock();
            if let Some(session) = state.session.take() {
                session.end(End::Lost);
                state.reset = Some(session.id);
            }
            link.work.notify_one();
            return;
        }
    };
    if frame.kind == Kind::Syn {
        let mut state = link.lock();
        state.syn_ack = Some(frame.session);
        if state.session.as_ref().is_none_or(|s| s.id != frame.session) {
            let session = Session::new(frame.session, link.work.clone());
            if let Some(old) = state.session.replace(session.clone()) {
                old.end(End::Lost);
            }
            drop(state);
            slot.put(Some(LinkStream(session)), false);
        }
        link.work.notify_one();
        return;
    }
    let (kind, id) = (frame.kind, frame.session);
    if !link.deliver(frame) && kind == Kind::Data {
        link.lock().reset = Some(id);
        link.work.notify_one();
    }
}
