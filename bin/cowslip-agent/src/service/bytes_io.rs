//! Streams of messages as blocking readers and writers, for work on threads of its own.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use cowslip_proto::limits::CHUNK_BYTES;
use cowslip_proto::pb::FileChunk;
use tokio::sync::mpsc;
use tonic::Status;

/// Messages that wait between the network and the disk.
pub(super) const DEPTH: usize = 4;

/// Reads what the host sends.
#[derive(Debug)]
pub(super) struct FromHost {
    messages: mpsc::Receiver<io::Result<Bytes>>,
    present: Bytes,
}

impl FromHost {
    pub(super) fn new() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, messages) = mpsc::channel(DEPTH);
        (
            sender,
            Self {
                messages,
                present: Bytes::new(),
            },
        )
    }
}

impl Read for FromHost {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.present.is_empty() {
            match self.messages.blocking_recv() {
                Some(message) => self.present = message?,
                None => return Ok(0),
            }
        }
        let length = buf.len().min(self.present.len());
        self.present.copy_to_slice(&mut buf[..length]);
        Ok(length)
    }
}

/// Sends to the host what is written.
#[derive(Debug)]
pub(super) struct ToHost {
    chunks: mpsc::Sender<Result<FileChunk, Status>>,
    pending: Vec<u8>,
}

impl ToHost {
    pub(super) fn new(chunks: mpsc::Sender<Result<FileChunk, Status>>) -> Self {
        Self {
            chunks,
            pending: Vec::with_capacity(CHUNK_BYTES),
        }
    }
}

impl Write for ToHost {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let length = buf.len().min(CHUNK_BYTES - self.pending.len());
        self.pending.extend_from_slice(&buf[..length]);
        if self.pending.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK_BYTES));
        let chunk = FileChunk {
            data: Bytes::from(full),
        };
        self.chunks
            .blocking_send(Ok(chunk))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
