//! Questions and answers on the sockets of one sandbox.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Resolver;
use crate::question::{QUESTION_MAX, Transport};
use crate::resolver::Step;

/// Questions by UDP for which somebody else is being asked. More are dropped, and asked again by the guest.
const QUESTIONS_MAX: usize = 32;
/// Connections; each has one question under way. More wait until one ends.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may take for a whole question, or to take its answer.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long a socket that fails is left alone, so that a lasting failure does not take a whole processor.
const PAUSE: Duration = Duration::from_secs(1);

impl Resolver {
    /// Answers on sockets that are bound already, until it is cancelled. What is under way then ends at once.
    pub async fn serve(&self, sockets: (UdpSocket, TcpListener), cancel: CancellationToken) {
        let (udp, tcp) = sockets;
        let both = async { tokio::join!(self.datagrams(Arc::new(udp)), self.connections(tcp)) };
        cancel.run_until_cancelled(both).await;
    }

    async fn datagrams(&self, socket: Arc<UdpSocket>) {
        let mut under_way = JoinSet::new();
        let mut buffer = vec![0; QUESTION_MAX];
        loop {
            let (length, guest) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    failed(&error, "receive").await;
                    continue;
                }
            };
            while under_way.try_join_next().is_some() {}
            match self.begin(&buffer[..length], Transport::Udp) {
                Step::Done(reply) => send(&socket, reply, guest),
                Step::Ask(_) if under_way.len() >= QUESTIONS_MAX => self.drop_one(),
                Step::Ask(pending) => {
                    let (resolver, socket) = (self.clone(), Arc::clone(&socket));
                    under_way.spawn(async move {
                        let reply = resolver.finish(pending, Transport::Udp).await;
                        send(&socket, reply, guest);
                    });
                }
            }
        }
    }

    async fn connections(&self, listener: TcpListener) {
        let mut under_way = JoinSet::new();
        loop {
            while under_way.try_join_next().is_some() {}
            if under_way.len() >= CONNECTIONS_MAX {
                under_way.join_next().await;
            }
            match listener.accept().await {
                Ok((stream, _)) => {
                    let resolver = self.clone();
                    under_way.spawn(async move {
                        // Its end is the guest's business, whatever it is.
                        let _ = resolver.connection(stream).await;
                    });
                }
                Err(error) => failed(&error, "accept").await,
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        while let Some(packet) = timeout(IDLE_MAX, read(&mut stream)).await?? {
            let reply = match self.begin(&packet, Transport::Tcp) {
                Step::Done(reply) => reply,
                Step::Ask(pending) => self.finish(pending, Transport::Tcp).await,
            };
            let Some(reply) = reply else { break };
            let Ok(length) = u16::try_from(reply.len()) else {
                break;
            };
            let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
            timeout(IDLE_MAX, stream.write_all(&framed)).await??;
        }
        Ok(())
    }
}

/// One question; none when the guest is done, or sends what is too long to be one.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length: usize = stream.read_u16().await?.into();
    if length > QUESTION_MAX {
        return Ok(None);
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(Some(packet))
}

/// A guest that takes no answers gets none: nothing waits for it.
fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, guest: SocketAddr) {
    if let Some(reply) = reply {
        let _ = socket.try_send_to(&reply, guest);
    }
}

async fn failed(error: &io::Error, what: &str) {
    tracing::warn!(%error, "cannot {what} a guest's questions for names; trying again");
    sleep(PAUSE).await;
}
