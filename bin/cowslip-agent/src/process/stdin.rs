//! The input of one process.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

/// End of input, typed (^D).
const END_OF_TRANSMISSION: u8 = 4;

/// Where a process's input goes, until it is closed.
#[derive(Debug)]
pub(crate) struct Stdin {
    to: Option<Sink>,
    /// Was anything written since the last end of a line?
    in_line: bool,
}

#[derive(Debug)]
enum Sink {
    Pipe(AsyncFd<OwnedFd>),
    Pty(Arc<AsyncFd<OwnedFd>>),
}

impl Stdin {
    /// No input at all.
    pub(crate) fn none() -> Self {
        Self {
            to: None,
            in_line: false,
        }
    }

    pub(crate) fn pipe(fd: AsyncFd<OwnedFd>) -> Self {
        Self {
            to: Some(Sink::Pipe(fd)),
            in_line: false,
        }
    }

    pub(crate) fn pty(master: Arc<AsyncFd<OwnedFd>>) -> Self {
        Self {
            to: Some(Sink::Pty(master)),
            in_line: false,
        }
    }

    /// Can anything be written?
    pub(crate) fn is_open(&self) -> bool {
        self.to.is_some()
    }

    /// Writes everything; waits while the process does not read. When it is dropped before it is
    /// done, a part has been written.
    ///
    /// # Errors
    /// `BrokenPipe` when the process has closed its input, or ours is closed.
    pub(crate) async fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        let fd = match &self.to {
            Some(Sink::Pipe(fd)) => fd,
            Some(Sink::Pty(master)) => master.as_ref(),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        if let Some(&last) = data.last() {
            self.in_line = last != b'\n';
        }
        while !data.is_empty() {
            let mut ready = fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, data)?)) {
                Ok(Ok(n)) => data = &data[n..],
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Ends the input. A terminal has no end: there the end-of-file character is typed, twice
    /// when a line was begun (the first one only sends the line).
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        if matches!(self.to, Some(Sink::Pty(_))) {
            let typed = [END_OF_TRANSMISSION; 2];
            let count = if self.in_line { 2 } else { 1 };
            self.write(&typed[..count]).await?;
            self.in_line = false;
            return Ok(());
        }
        self.to = None;
        Ok(())
    }
}
