//! One session of the link: two bounded buffers between the link's driver and its user.
//!
//! The peer may send only what it was given credit for, so the driver can always take in what
//! arrives and never waits for the user of the stream: a wedged user cannot hide a new handshake.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::frame::{Kind, MAX_PAYLOAD, encode};

/// Bytes that a peer may send ahead of what was read.
pub const WINDOW: usize = 256 * 1024;
/// Bytes that a user may write ahead of what was sent.
const SEND_BUFFER: usize = 64 * 1024;

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer said so.
    Finished,
    /// The peer, or the bytes below, went away; another session took its place.
    Lost,
}

#[derive(Debug)]
struct Inner {
    received: VecDeque<Bytes>,
    /// Bytes the peer may still send.
    window: usize,
    /// Bytes read by the user for which no credit was given back yet.
    consumed: usize,
    outgoing: BytesMut,
    /// Bytes we may still send.
    credit: usize,
    end: Option<End>,
    /// The user is done: send what may be sent, then FIN.
    closing: bool,
    fin_sent: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The part of a session that the driver and the [`LinkStream`] share.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    inner: Mutex<Inner>,
    /// Tells the driver that there is something to send.
    work: Arc<Notify>,
    /// Tells the driver that the user has dropped the stream.
    dropped: Notify,
}

impl Session {
    pub(super) fn new(id: u64, work: Arc<Notify>) -> Arc<Self> {
        let inner = Inner {
            received: VecDeque::new(),
            window: WINDOW,
            consumed: 0,
            outgoing: BytesMut::new(),
            credit: WINDOW,
            end: None,
            closing: false,
            fin_sent: false,
            reader: None,
            writer: None,
        };
        Arc::new(Self {
            id,
            inner: Mutex::new(inner),
            work,
            dropped: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in data of the peer. False: the peer sent more than it was allowed to.
    pub(super) fn receive(&self, payload: Bytes) -> bool {
        let mut inner = self.lock();
        let Some(rest) = inner.window.checked_sub(payload.len()) else {
            return false;
        };
        inner.window = rest;
        if !payload.is_empty() && inner.end.is_none() && !inner.closing {
            inner.received.push_back(payload);
            wake(&mut inner.reader);
        }
        true
    }

    /// The peer has room for more.
    pub(super) fn add_credit(&self, payload: &[u8]) {
        if let Some(&bytes) = payload.first_chunk::<4>() {
            let more = usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(0);
            let mut inner = self.lock();
            inner.credit = inner.credit.saturating_add(more).min(WINDOW);
        }
    }

    /// Ends the session: readers get what had arrived whole, then end of file or an error.
    pub(super) fn end(&self, how: End) {
        let mut inner = self.lock();
        if inner.end.is_none() {
            inner.end = Some(how);
        }
        inner.outgoing.clear();
        wake(&mut inner.reader);
        wake(&mut inner.writer);
    }

    /// Appends the frames that may be sent now to `out`, up to about `room` bytes.
    pub(super) fn frames(&self, out: &mut BytesMut, room: usize) {
        let mut inner = self.lock();
        if inner.end.is_some() {
            return;
        }
        if inner.consumed >= WINDOW / 4 {
            let bytes = u32::try_from(inner.consumed).unwrap_or(u32::MAX);
            encode(Kind::Credit, self.id, &bytes.to_be_bytes(), out);
            inner.window += inner.consumed;
            inner.consumed = 0;
        }
        while out.len() < room && inner.credit > 0 && !inner.outgoing.is_empty() {
            let length = inner.outgoing.len().min(inner.credit).min(MAX_PAYLOAD);
            let payload = inner.outgoing.split_to(length);
            encode(Kind::Data, self.id, &payload, out);
            inner.credit -= length;
            wake(&mut inner.writer);
        }
        if inner.closing && inner.outgoing.is_empty() && !inner.fin_sent {
            encode(Kind::Fin, self.id, &[], out);
            inner.fin_sent = true;
            inner.end = Some(End::Finished);
            wake(&mut inner.reader);
            wake(&mut inner.writer);
        }
    }

    /// Waits until the user has dropped the stream. For one waiter.
    pub(super) async fn dropped(&self) {
        self.dropped.notified().await;
    }

    /// True once the session is over for either side.
    pub(super) fn is_over(&self) -> bool {
        self.lock().end.is_some()
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// A session as a byte stream. Dropping it ends the session.
#[derive(Debug)]
pub struct LinkStream(pub(super) Arc<Session>);

impl LinkStream {
    /// The session's nonce, as it appears in logs.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.0.id
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if let Some(front) = inner.received.front_mut() {
            let length = front.len().min(buf.remaining());
            buf.put_slice(&front[..length]);
            front.advance(length);
            if front.is_empty() {
                inner.received.pop_front();
            }
            inner.consumed += length;
            if inner.consumed >= WINDOW / 4 {
                self.0.work.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        match inner.end {
            Some(End::Finished) => Poll::Ready(Ok(())),
            Some(End::Lost) => Poll::Ready(Err(lost())),
            None => {
                inner.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        if inner.end.is_some() || inner.closing {
            return Poll::Ready(Err(lost()));
        }
        let room = SEND_BUFFER.saturating_sub(inner.outgoing.len());
        if room == 0 {
            inner.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = room.min(buf.len());
        inner.outgoing.extend_from_slice(&buf[..length]);
        self.0.work.notify_one();
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Written bytes are on their way: the driver needs no further call to send them.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if inner.end.is_some() {
            return Poll::Ready(Ok(()));
        }
        inner.closing = true;
        inner.writer = Some(cx.waker().clone());
        self.0.work.notify_one();
        Poll::Pending
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.closing = true;
        // What the peer has no room for must not delay the end.
        let credit = inner.credit;
        inner.outgoing.truncate(credit);
        self.0.work.notify_one();
        self.0.dropped.notify_one();
    }
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the agent link was lost")
}
