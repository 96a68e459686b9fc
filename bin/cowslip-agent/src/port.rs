//! A virtio-serial port as a byte stream that survives its host.
//!
//! While no host is connected a port reads end-of-file and polls as hung up, and both pass when a
//! host comes. Event loops take a hang-up for final, so the port is not registered with ours but
//! with two edge-triggered epoll instances of its own, one for each direction, and *those* are
//! registered: an epoll instance never hangs up.
//!
//! The kernel learns of a host's going and of the next one's coming on another queue than data
//! comes on: a hang-up may be seen *after* the new host's first bytes. So only one that lasts is
//! reported; the link does not need it, but it frees what the lost host was following.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::sys;

/// How long a host must be away before its session is given up.
const AWAY: Duration = Duration::from_millis(500);

/// An open port.
#[derive(Debug)]
pub(crate) struct Port {
    port: OwnedFd,
    readable: Edge,
    writable: Edge,
    host: Host,
}

/// What reading the port says of the host.
#[derive(Debug)]
enum Host {
    Here,
    /// Hung up; reported when the time is over.
    Leaving(Pin<Box<Sleep>>),
    /// Hung up, and reported.
    Gone,
}

/// Tells when one direction of the port has changed.
#[derive(Debug)]
struct Edge(AsyncFd<OwnedFd>);

impl Edge {
    fn new(port: impl AsFd, flags: epoll::EventFlags) -> io::Result<Self> {
        let edge = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &edge,
            port,
            epoll::EventData::new_u64(0),
            flags | epoll::EventFlags::ET,
        )?;
        Ok(Self(sys::watch(edge, Interest::READABLE)?))
    }

    /// Waits for a change since the last time that this was ready.
    fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.0.poll_read_ready(cx))?;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let result = epoll::wait(&self.0, &mut events, Some(&now));
        guard.clear_ready();
        match result {
            Ok(_) | Err(Errno::INTR) => Poll::Ready(Ok(())),
            Err(e) => Poll::Ready(Err(e.into())),
        }
    }
}

impl Port {
    /// Takes over an open port.
    ///
    /// # Errors
    /// When it cannot be watched for events.
    pub(crate) fn new(port: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&port, true)?;
        let readable = Edge::new(&port, epoll::EventFlags::IN)?;
        let writable = Edge::new(&port, epoll::EventFlags::OUT)?;
        Ok(Self {
            port,
            readable,
            writable,
            host: Host::Here,
        })
    }
}

impl AsyncRead for Port {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let port = &mut *self;
        loop {
            match rustix::io::read(&port.port, buf.initialize_unfilled()) {
                Ok(0) => {
                    if let Host::Here = port.host {
                        port.host = Host::Leaving(Box::pin(sleep(AWAY)));
                    }
                    if let Host::Leaving(away) = &mut port.host
                        && away.as_mut().poll(cx).is_ready()
                    {
                        port.host = Host::Gone;
                        return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                    }
                    ready!(port.readable.poll_changed(cx))?;
                }
                Ok(length) => {
                    port.host = Host::Here;
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => {
                    port.host = Host::Here;
                    ready!(port.readable.poll_changed(cx))?;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.port, buf) {
                Ok(length) => return Poll::Ready(Ok(length)),
                Err(Errno::AGAIN) => ready!(self.writable.poll_changed(cx))?,
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
