//! The task that owns the control socket.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::wire::{self, Event, Lines, Message};
use super::{QmpError, Request};

/// Commands without an answer at one time.
const PENDING_MAX: usize = 64;

struct Pending {
    command: &'static str,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

/// A line that is being written; its descriptor goes with the first byte.
struct Outgoing {
    line: Vec<u8>,
    written: usize,
    fd: Option<OwnedFd>,
}

struct Driver {
    stream: UnixStream,
    pending: HashMap<u64, Pending>,
    outgoing: VecDeque<Outgoing>,
    next_id: u64,
    lines: Lines,
    events: broadcast::Sender<Event>,
    greet: Option<oneshot::Sender<()>>,
}

/// Runs until the channel breaks or nobody holds a client any more.
pub(super) async fn run(
    stream: UnixStream,
    mut queue: mpsc::Receiver<Request>,
    events: broadcast::Sender<Event>,
    greet: oneshot::Sender<()>,
    closed: watch::Sender<Option<Arc<str>>>,
) {
    let mut driver = Driver {
        stream,
        pending: HashMap::new(),
        outgoing: VecDeque::new(),
        next_id: 1,
        lines: Lines::default(),
        events,
        greet: Some(greet),
    };
    let why = driver.drive(&mut queue).await;
    // The reason is set before anyone is told, so that all are told the same.
    closed.send_replace(Some(why.as_str().into()));
    queue.close();
    for (_, pending) in driver.pending.drain() {
        let _ = pending.reply.send(Err(QmpError::Closed(why.clone())));
    }
}

impl Driver {
    /// Gives the reason why the channel ended.
    async fn drive(&mut self, queue: &mut mpsc::Receiver<Request>) -> String {
        loop {
            let interest = if self.outgoing.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let step = tokio::select! {
                request = queue.recv(), if self.pending.len() < PENDING_MAX => match request {
                    Some(request) => { self.accept(request); Ok(()) }
                    None => return "nobody uses the control channel any more".to_owned(),
                },
                ready = self.stream.ready(interest) => match ready {
                    Ok(ready) => {
                        let written =
                            if ready.is_writable() { self.write() } else { Ok(()) };
                        written.and_then(|()| if ready.is_readable() { self.read() } else { Ok(()) })
                    }
                    Err(error) => Err(error.to_string()),
                },
            };
            if let Err(why) = step {
                return why;
            }
        }
    }

    fn accept(&mut self, request: Request) {
        let id = self.next_id;
        self.next_id += 1;
        self.outgoing.push_back(Outgoing {
            line: wire::command(request.command, &request.arguments, id),
            written: 0,
            fd: request.fd,
        });
        self.pending.insert(
            id,
            Pending {
                command: request.command,
                reply: request.reply,
            },
        );
    }

    fn write(&mut self) -> Result<(), String> {
        while let Some(current) = self.outgoing.front_mut() {
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                send(
                    &self.stream,
                    current.line.get(current.written..).unwrap_or(&[]),
                    current.fd.as_ref(),
                )
            });
            match sent {
                Ok(count) => {
                    current.fd = None;
                    current.written += count;
                    if current.written >= current.line.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("write to the control channel: {error}")),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Err("the monitor closed the control channel".to_owned()),
                Ok(count) => {
                    self.lines.push(chunk.get(..count).unwrap_or(&[]));
                    self.dispatch()?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("read from the control channel: {error}")),
            }
        }
    }

    fn dispatch(&mut self) -> Result<(), String> {
        let nonsense = |error: wire::WireError| format!("the monitor sent {error}");
        while let Some(line) = self.lines.next().map_err(nonsense)? {
            if line.is_empty() {
                continue;
            }
            match wire::parse(&line).map_err(nonsense)? {
                Message::Greeting => {
                    if let Some(greet) = self.greet.take() {
                        let _ = greet.send(());
                    }
                }
                Message::Event(event) => {
                    // Nobody listening is no fault.
                    let _ = self.events.send(event);
                }
                Message::Return { id, value } => self.answer(id, |_| Ok(value))?,
                Message::Error {
                    id: Some(id),
                    description,
                    ..
                } => {
                    self.answer(id, |command| {
                        Err(QmpError::Refused {
                            command,
                            description,
                        })
                    })?;
                }
                Message::Error {
                    id: None,
                    class,
                    description,
                } => {
                    return Err(format!(
                        "the monitor did not understand: {class}: {description}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn answer(
        &mut self,
        id: u64,
        result: impl FnOnce(&'static str) -> Result<Value, QmpError>,
    ) -> Result<(), String> {
        let pending = self
            .pending
            .remove(&id)
            .ok_or_else(|| format!("the monitor answered {id}, which nobody asked"))?;
        // Whoever asked may have given up waiting.
        let _ = pending.reply.send(result(pending.command));
        Ok(())
    }
}

fn send(stream: &UnixStream, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    // NOSIGNAL: a monitor that died must not end the engine by SIGPIPE.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        flags,
    )?)
}
