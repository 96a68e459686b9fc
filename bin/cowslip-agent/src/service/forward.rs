//! Connections from the host to a port of the guest's loopback.
//!
//! ```text
//!  chunks ─► receive ─ queue ─► write ─► socket
//!    to  ◄── taken ◄──────────────┘
//!    to  ◄── data, close ◄────── read ◄─ socket      as far as the host's `taken` lets it
//! ```
//!
//! The host is heard at all times, whatever the guest's program does, so that one connection that
//! nobody reads holds up no other call. What waits for the program is bounded by the window.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cowslip_proto::limits::{CHUNK_BYTES, FORWARD_WINDOW};
use cowslip_proto::pb::ForwardChunk;
use futures_util::future::{Either, select};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::bytes_io::DEPTH;

type Answer = mpsc::Sender<Result<ForwardChunk, Status>>;

pub(super) async fn forward(
    free: &Arc<Semaphore>,
    mut chunks: Streaming<ForwardChunk>,
) -> Result<ReceiverStream<Result<ForwardChunk, Status>>, Status> {
    let first = chunks.message().await?;
    let port = first.map_or(0, |chunk| chunk.port);
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Status::invalid_argument("the first chunk names no port"))?;
    let place = Arc::clone(free).try_acquire_owned();
    let place = place.map_err(|_| {
        Status::resource_exhausted("the guest has as many forwarded connections as it may")
    })?;
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    let socket = socket.map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => {
            Status::failed_precondition(format!("nothing listens on port {port} in the guest"))
        }
        _ => Status::unknown(format!(
            "cannot connect to port {port} in the guest: {error}"
        )),
    })?;
    // What comes has waited for others already.
    let _ = socket.set_nodelay(true);
    let (to, answer) = mpsc::channel(DEPTH);
    tokio::spawn(carry(socket, chunks, to, place));
    Ok(ReceiverStream::new(answer))
}

/// Carries a connection until both sides have closed it, or one breaks it off.
async fn carry(
    mut socket: TcpStream,
    chunks: Streaming<ForwardChunk>,
    to: Answer,
    _place: OwnedSemaphorePermit,
) {
    let (reader, writer) = socket.split();
    let (queue, queued) = mpsc::unbounded_channel();
    let (taken, seen) = watch::channel(0);
    let written = watch::Sender::new(0);
    let both = async {
        let reading = std::pin::pin!(read(reader, seen, &to));
        let writing = std::pin::pin!(write(writer, queued, &written, &to));
        match select(reading, writing).await {
            Either::Left((Err(status), _)) => Err(status),
            Either::Left((Ok(()), writing)) => writing.await,
            // A program that hears no more may still have something to say.
            Either::Right((written, reading)) => reading.await.and(written),
        }
    };
    let ended = tokio::select! {
        biased;
        ended = both => Some(ended),
        status = receive(chunks, queue, taken, &written) => status.map(Err),
        () = to.closed() => None,
    };
    match ended {
        Some(Ok(())) => {}
        other => {
            // The program is to see that this is no proper end.
            let _ = socket.set_zero_linger();
            if let Some(Err(status)) = other {
                let _ = to.send(Err(status)).await;
            }
        }
    }
}

/// Hears the host. Comes back when it breaks off, or says too much; never after a proper end.
async fn receive(
    mut chunks: Streaming<ForwardChunk>,
    queue: mpsc::UnboundedSender<Bytes>,
    taken: watch::Sender<u64>,
    written: &watch::Sender<u64>,
) -> Option<Status> {
    let mut queue = Some(queue);
    let mut received = 0;
    loop {
        let Ok(Some(chunk)) = chunks.message().await else {
            return None;
        };
        if chunk.taken > 0 {
            taken.send_replace(chunk.taken);
        }
        received += chunk.data.len() as u64;
        if received - *written.borrow() > FORWARD_WINDOW {
            let message = "more was sent than the guest has taken";
            return Some(Status::resource_exhausted(message));
        }
        if let Some(queue) = queue.as_ref().filter(|_| !chunk.data.is_empty()) {
            // A program that reads no more has said so to the writing half.
            let _ = queue.send(chunk.data);
        }
        if chunk.close {
            queue = None;
        }
    }
}

async fn write(
    mut socket: WriteHalf<'_>,
    mut queued: mpsc::UnboundedReceiver<Bytes>,
    written: &watch::Sender<u64>,
    to: &Answer,
) -> Result<(), Status> {
    while let Some(data) = queued.recv().await {
        socket.write_all(&data).await.map_err(|e| broken(&e))?;
        written.send_modify(|bytes| *bytes += data.len() as u64);
        let chunk = ForwardChunk {
            taken: *written.borrow(),
            ..Default::default()
        };
        say(to, chunk).await;
    }
    socket.shutdown().await.map_err(|e| broken(&e))
}

async fn read(
    mut socket: ReadHalf<'_>,
    mut taken: watch::Receiver<u64>,
    to: &Answer,
) -> Result<(), Status> {
    let mut sent = 0_u64;
    loop {
        let room = |taken: &u64| sent.saturating_sub(*taken) < FORWARD_WINDOW;
        let Ok(taken) = taken.wait_for(room).await.map(|taken| *taken) else {
            // The host is gone, which ends everything.
            return std::future::pending().await;
        };
        let window = FORWARD_WINDOW - sent.saturating_sub(taken);
        let length = CHUNK_BYTES.min(usize::try_from(window).unwrap_or(CHUNK_BYTES));
        let mut data = BytesMut::zeroed(length);
        let length = socket.read(&mut data).await.map_err(|e| broken(&e))?;
        data.truncate(length);
        sent += length as u64;
        let chunk = ForwardChunk {
            data: data.freeze(),
            close: length == 0,
            ..Default::default()
        };
        say(to, chunk).await;
        if length == 0 {
            return Ok(());
        }
    }
}

/// That nobody listens is noticed elsewhere.
async fn say(to: &Answer, chunk: ForwardChunk) {
    let _ = to.send(Ok(chunk)).await;
}

fn broken(error: &io::Error) -> Status {
    Status::aborted(format!("the guest broke the connection off: {error}"))
}
