//! The host's side of the link: begins a session and finds its beginning in what the guest sends.
//!
//! What arrives before the answer to our own nonce belongs to somebody who is gone (a killed
//! engine, or the host of the machine that a checkpoint was taken from) and is ignored unseen.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::driver::Link;
use super::frame::{Decoded, Decoder, Kind, SLED, encode};
use super::session::{End, LinkStream, Session};

/// How long the first handshake is given before it is sent again; doubles each time.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// How long the end of a session may take to reach the guest before the stream is closed under it.
const LINGER: Duration = Duration::from_secs(1);

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The guest did not answer. It may still be booting, or it is wedged.
    #[error("the agent did not answer the link handshake within {after:?}")]
    Timeout {
        /// How long it was given.
        after: Duration,
    },
    /// The monitor closed the stream.
    #[error("the stream to the agent ended during the link handshake")]
    Ended,
    /// The stream failed.
    #[error("cannot use the stream to the agent")]
    Io(#[from] io::Error),
    /// The host gave no random nonce.
    #[error("cannot draw a random session nonce: {0}")]
    Random(getrandom::Error),
}

/// Begins a session with the agent at the other end of `raw`. Needs a tokio runtime: the bytes
/// are moved by a task of their own, which ends with the session.
///
/// # Errors
/// [`HandshakeError`]; `raw` is closed then.
pub async fn connect<S>(raw: S, timeout: Duration) -> Result<LinkStream, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let nonce = getrandom::u64().map_err(HandshakeError::Random)?;
    let (mut reader, mut writer) = tokio::io::split(raw);
    let mut unsent = BytesMut::new();
    let shake = async {
        tokio::select! {
            found = find_answer(&mut reader, nonce) => found,
            failed = offer(&mut writer, nonce, &mut unsent) => Err(failed),
        }
    };
    let rest = tokio::time::timeout(timeout, shake)
        .await
        .map_err(|_| HandshakeError::Timeout { after: timeout })??;

    let link = Link::default();
    let session = Session::new(nonce, link.work.clone());
    link.lock().session = Some(session.clone());
    let stream = LinkStream(session.clone());
    tokio::spawn(async move {
        let mut decoder = Decoder::default();
        decoder.push(&rest);
        let read = link.read_loop(&mut reader, decoder, |decoded| on_frame(&link, decoded));
        let write = link.write_loop(&mut writer, unsent, true);
        let linger = async {
            session.dropped().await;
            tokio::time::sleep(LINGER).await;
        };
        let ended = tokio::select! {
            ended = read => ended,
            ended = write => ended,
            () = linger => Ok(()),
        };
        link.end_session(End::Lost);
        tracing::debug!(session = nonce, result = ?ended, "the agent link has ended");
    });
    Ok(stream)
}

fn on_frame(link: &Link, decoded: Decoded) -> io::Result<()> {
    match decoded {
        Decoded::Frame(frame) => {
            link.deliver(frame);
            Ok(())
        }
        Decoded::Garbage => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the agent link carries bytes that are no frame",
        )),
    }
}

/// Sends the handshake until it is dropped, again and again: the guest may be reset under it.
/// What was begun and not finished stays in `unsent`, so that nothing is ever cut in half.
async fn offer<W: AsyncWrite + Unpin>(
    raw: &mut W,
    nonce: u64,
    unsent: &mut BytesMut,
) -> HandshakeError {
    let mut pause = FIRST_RETRY;
    loop {
        unsent.resize(SLED, 0);
        encode(Kind::Syn, nonce, &[], unsent);
        while unsent.has_remaining() {
            match raw.write_buf(unsent).await {
                Ok(0) => return HandshakeError::Ended,
                Ok(_) => {}
                Err(e) => return HandshakeError::Io(e),
            }
        }
        if let Err(e) = raw.flush().await {
            return HandshakeError::Io(e);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Reads up to and including our answer; gives back the bytes after it.
async fn find_answer<R: AsyncRead + Unpin>(
    raw: &mut R,
    nonce: u64,
) -> Result<BytesMut, HandshakeError> {
    let mut answer = BytesMut::new();
    encode(Kind::SynAck, nonce, &[], &mut answer);
    let mut seen = BytesMut::with_capacity(64 * 1024);
    loop {
        if let Some(at) = seen.windows(answer.len()).position(|w| w == answer) {
            seen.advance(at + answer.len());
            return Ok(seen);
        }
        // Keep what could be the beginning of the answer.
        let keep = answer.len() - 1;
        if seen.len() > keep {
            seen.advance(seen.len() - keep);
        }
        if raw.read_buf(&mut seen).await? == 0 {
            return Err(HandshakeError::Ended);
        }
    }
}
