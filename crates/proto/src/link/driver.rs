//! Moves bytes between a raw stream and the present session, in both directions at once.
//!
//! The reading half never waits for the writing half or for the session's user, so a handshake is
//! seen whatever state the rest is in.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::frame::{Decoded, Decoder, Frame, Kind, encode};
use super::session::{End, Session};

/// Bytes that are gathered for one write to the raw stream.
const BATCH: usize = 32 * 1024;

/// What both sides know: the session, and control frames that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: Mutex<State>,
    pub(super) work: Arc<Notify>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) session: Option<Arc<Session>>,
    /// One of each at most: a later one makes an earlier one pointless.
    pub(super) syn_ack: Option<u64>,
    pub(super) reset: Option<u64>,
}

impl Link {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the present session, if there is one.
    pub(super) fn end_session(&self, how: End) {
        if let Some(session) = self.lock().session.take() {
            session.end(how);
        }
    }

    fn fill(&self, out: &mut BytesMut) {
        let mut state = self.lock();
        if let Some(id) = state.reset.take() {
            encode(Kind::Reset, id, &[], out);
        }
        if let Some(id) = state.syn_ack.take() {
            encode(Kind::SynAck, id, &[], out);
        }
        if let Some(session) = &state.session {
            session.frames(out, BATCH);
            if session.is_over() {
                state.session = None;
            }
        }
    }

    /// Sends what there is to send until the raw stream fails, or, with `until_idle`, until no
    /// session is left.
    pub(super) async fn write_loop<W: AsyncWrite + Unpin>(
        &self,
        raw: &mut W,
        mut out: BytesMut,
        until_idle: bool,
    ) -> io::Result<()> {
        loop {
            self.fill(&mut out);
            if out.is_empty() {
                if until_idle && self.lock().session.is_none() {
                    return Ok(());
                }
                self.work.notified().await;
                continue;
            }
            raw.write_all(&out).await?;
            raw.flush().await?;
            out.clear();
        }
    }

    /// Hands the frame to the present session. False: it belongs to none.
    pub(super) fn deliver(&self, frame: Frame) -> bool {
        let mut state = self.lock();
        let Some(session) = state.session.clone().filter(|s| s.id == frame.session) else {
            return false;
        };
        match frame.kind {
            Kind::Data => {
                if !session.receive(frame.payload) {
                    session.end(End::Lost);
                    state.session = None;
                    state.reset = Some(session.id);
                }
            }
            Kind::Credit => session.add_credit(&frame.payload),
            Kind::Fin => {
                session.end(End::Finished);
                state.session = None;
            }
            Kind::Reset => {
                session.end(End::Lost);
                state.session = None;
            }
            Kind::Syn | Kind::SynAck => {}
        }
        self.work.notify_one();
        true
    }

    /// Reads frames until the raw stream ends or `on` says to stop.
    pub(super) async fn read_loop<R: AsyncRead + Unpin>(
        &self,
        raw: &mut R,
        mut decoder: Decoder,
        mut on: impl FnMut(Decoded) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buf = BytesMut::with_capacity(BATCH);
        loop {
            while let Some(decoded) = decoder.next_frame() {
                on(decoded)?;
            }
            buf.clear();
            match raw.read_buf(&mut buf).await {
                Ok(0) => return Ok(()),
                Ok(_) => decoder.push(&buf),
                // The other side hung up and somebody else may come: see `agent`. It is told none the less: one
                // that is there after all would wait for answers that nobody gives any more.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {
                    let mut state = self.lock();
                    if let Some(session) = state.session.take() {
                        session.end(End::Lost);
                        state.reset = Some(session.id);
                    }
                    drop(state);
                    self.work.notify_one();
                }
                Err(e) => return Err(e),
            }
        }
    }
}
