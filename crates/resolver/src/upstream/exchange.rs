//! One question to one server, and its answer.
//!
//! Whoever may send packets to this host can pretend to be the server: what is believed must come from its address, to
//! a port that the kernel chose for this one question at random, with the question's random id and the question itself.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::UpstreamError;

/// Bytes of an answer by UDP that a server is told it may send: it fits in a packet of any link.
const UDP_ROOM: u16 = 1232;
/// Bytes that are read of one, since some send more.
const UDP_MOST: usize = 4096;
/// Packets that are not the answer, after which somebody seems to be guessing; TCP cannot be guessed.
const WRONG_MAX: u32 = 16;

/// What a server answers; each way of asking has this long.
pub(super) async fn exchange(
    server: SocketAddr,
    query: &Query,
    time: Duration,
) -> Result<Message, UpstreamError> {
    let within = async |edns| match timeout(time, by_udp(server, query, edns)).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => match timeout(time, by_tcp(server, query)).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(source)) => Err(UpstreamError::Ask { server, source }),
            Err(_) => Err(UpstreamError::Silent { server }),
        },
        Ok(Err(source)) => Err(UpstreamError::Ask { server, source }),
        Err(_) => Err(UpstreamError::Silent { server }),
    };
    let message = within(true).await?;
    match message.response_code {
        // A server from before EDNS.
        ResponseCode::FormErr | ResponseCode::NotImp => within(false).await,
        _ => Ok(message),
    }
}

/// A question of its own id.
fn question(query: &Query, edns: bool) -> Message {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.queries.push(query.clone());
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_ROOM);
        question.edns = Some(edns);
    }
    question
}

/// Why a packet is not the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// It is to another question, or not from the server.
    Stray,
    /// It has the question's id, but cannot be read: some servers cut an answer that is too long anywhere.
    Unreadable,
}

/// The answer, if it is one to this question.
fn answer_to(question: &Message, bytes: &[u8]) -> Result<Message, Wrong> {
    let (id, rest) = bytes.split_at_checked(2).ok_or(Wrong::Stray)?;
    let is_answer = rest.first().is_some_and(|flags| flags & 0x80 != 0);
    if id != question.id.to_be_bytes() || !is_answer {
        return Err(Wrong::Stray);
    }
    let message = Message::from_vec(bytes).map_err(|_| Wrong::Unreadable)?;
    // Who does not understand a question may leave it out.
    let lost = message.queries.is_empty()
        && matches!(
            message.response_code,
            ResponseCode::FormErr | ResponseCode::NotImp
        );
    let same = message.op_code == OpCode::Query && message.queries == question.queries;
    (lost || same).then_some(message).ok_or(Wrong::Stray)
}

/// None: it must be asked for by TCP.
async fn by_udp(server: SocketAddr, query: &Query, edns: bool) -> io::Result<Option<Message>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let question = question(query, edns);
    socket.send(&written(&question)?).await?;
    let mut buffer = vec![0; UDP_MOST];
    for _ in 0..WRONG_MAX {
        let length = socket.recv(&mut buffer).await?;
        match answer_to(&question, &buffer[..length]) {
            Ok(message) if message.truncation => return Ok(None),
            Ok(message) => return Ok(Some(message)),
            Err(Wrong::Unreadable) => return Ok(None),
            Err(Wrong::Stray) => {}
        }
    }
    Ok(None)
}

async fn by_tcp(server: SocketAddr, query: &Query) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let question = question(query, true);
    let bytes = written(&question)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), bytes.as_slice()].concat();
    stream.write_all(&framed).await?;
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    let wrong = "its answer is none, or is to another question";
    answer_to(&question, &bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, wrong))
}

fn written(question: &Message) -> io::Result<Vec<u8>> {
    question.to_vec().map_err(io::Error::other)
}
