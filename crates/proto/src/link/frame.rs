//! The frames of the link and the decoder that finds them again after any damage.
//!
//! ```text
//!  kind u8 │ session u64 │ length u16 │ payload … │ crc32 of all before u32      (big endian)
//!
//!            bad kind, length or crc
//!  aligned ───────────────────────────► hunting
//!     ▲  zero bytes between frames         │
//!     │  are skipped                       │
//!     └────────────────────────────────────┘
//!        MIN_SLED zero bytes in a row
//! ```
//!
//! A run of [`SLED`] zero bytes is longer than any frame, so it carries a decoder out of whatever
//! frame it believed to be in: the rest of a cut frame fails its checksum, or is padding. This is
//! pure computation and must never do I/O.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most bytes of payload in one frame.
pub const MAX_PAYLOAD: usize = 8 * 1024;
/// Zero bytes in a row after which a lost decoder looks for a frame again.
pub const MIN_SLED: usize = 64;
/// Zero bytes that bring a decoder in any state to a frame boundary.
pub const SLED: usize = MAX_FRAME + MIN_SLED;

const HEADER: usize = 11;
const TRAILER: usize = 4;
/// Bytes of the longest frame.
pub const MAX_FRAME: usize = HEADER + MAX_PAYLOAD + TRAILER;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to agent: end whatever session there was and begin this one.
    Syn = 1,
    /// Agent to host: this session has begun.
    SynAck = 2,
    /// Bytes of the session.
    Data = 3,
    /// The receiver has room for so many more bytes (`u32`).
    Credit = 4,
    /// The session is at its end, in both directions.
    Fin = 5,
    /// The sender knows no such session.
    Reset = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Syn,
            2 => Self::SynAck,
            3 => Self::Data,
            4 => Self::Credit,
            5 => Self::Fin,
            6 => Self::Reset,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// The nonce of the session it belongs to.
    pub session: u64,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
}

/// Appends a frame to `out`. The payload beyond [`MAX_PAYLOAD`] bytes is not sent: callers split.
pub fn encode(kind: Kind, session: u64, payload: &[u8], out: &mut BytesMut) {
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    let start = out.len();
    out.reserve(HEADER + payload.len() + TRAILER);
    out.put_u8(kind as u8);
    out.put_u64(session);
    out.put_u16(u16::try_from(payload.len()).unwrap_or(u16::MAX));
    out.put_slice(payload);
    let crc = crc32fast::hash(&out[start..]);
    out.put_u32(crc);
}

/// What the decoder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A whole frame with a good checksum.
    Frame(Frame),
    /// Bytes that are no frame: everything up to the next sled is lost.
    Garbage,
}

/// Cuts a byte stream into frames. Holds at most what was pushed since the last whole frame.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    /// Zero bytes seen in a row while hunting.
    hunting: Option<usize>,
}

impl Decoder {
    /// Takes in more bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next frame, or `None` until more bytes are pushed.
    pub fn next_frame(&mut self) -> Option<Decoded> {
        if let Some(zeros) = self.hunting {
            self.hunting = self.hunt(zeros);
            if self.hunting.is_some() {
                return None;
            }
        }
        let padding = self.buf.iter().take_while(|&&b| b == 0).count();
        self.buf.advance(padding);
        let kind = Kind::from_byte(*self.buf.first()?);
        let Some(kind) = kind else {
            return Some(self.lose_sync());
        };
        if self.buf.len() < HEADER {
            return None;
        }
        let mut header = &self.buf[1..HEADER];
        let session = header.get_u64();
        let length = usize::from(header.get_u16());
        if length > MAX_PAYLOAD {
            return Some(self.lose_sync());
        }
        let total = HEADER + length + TRAILER;
        if self.buf.len() < total {
            return None;
        }
        let mut trailer = &self.buf[HEADER + length..total];
        if crc32fast::hash(&self.buf[..HEADER + length]) != trailer.get_u32() {
            return Some(self.lose_sync());
        }
        let mut frame = self.buf.split_to(total).freeze();
        frame.advance(HEADER);
        frame.truncate(length);
        Some(Decoded::Frame(Frame {
            kind,
            session,
            payload: frame,
        }))
    }

    /// Gives up the present byte only: what follows may already be part of a sled.
    fn lose_sync(&mut self) -> Decoded {
        self.buf.advance(1);
        self.hunting = Some(0);
        Decoded::Garbage
    }

    /// Skips to the first byte after a sled; `None` when it is found.
    fn hunt(&mut self, mut zeros: usize) -> Option<usize> {
        for at in 0..self.buf.len() {
            if self.buf[at] == 0 {
                zeros += 1;
            } else if zeros >= MIN_SLED {
                self.buf.advance(at);
                return None;
            } else {
                zeros = 0;
            }
        }
        self.buf.clear();
        Some(zeros)
    }
}
