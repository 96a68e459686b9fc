//! Packets that were denied, as rules log them: nfnetlink_log.
//!
//! A guest wrote them: nothing in them is as it should be.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use rustix::net::{RecvFlags, recv};
use tokio::io::unix::AsyncFd;

use super::netlink::{self, Message, Socket};

/// `NFNL_SUBSYS_ULOG`, `NFULNL_MSG_PACKET`, `NFULNL_MSG_CONFIG`.
const LOG: u8 = 4;
const PACKET: u8 = 0;
const CONFIGURE: u8 = 1;
/// `NFULA_CFG_CMD` with `NFULNL_CFG_CMD_BIND`, `NFULA_CFG_MODE` with `NFULNL_COPY_PACKET`, `NFULA_CFG_QTHRESH`.
const COMMAND: u16 = 1;
const BIND: u8 = 1;
const MODE: u16 = 2;
const COPY: u8 = 2;
const THRESHOLD: u16 = 5;
/// `NFULA_PAYLOAD`.
const PAYLOAD: u16 = 9;
/// As much of a packet as is looked at: the longest IPv4 header, and two ports.
const LENGTH: u8 = 64;
/// What may come at once.
const BUFFER: usize = 16 << 10;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet that the rules let through to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeniedPacket {
    /// The number of its protocol: 6 is TCP, 17 is UDP.
    pub protocol: u8,
    /// Whom it says that it is from.
    pub source: Ipv4Addr,
    /// Where it was to go.
    pub destination: Ipv4Addr,
    /// The port there; none where the protocol has none, or the packet is a part without it.
    pub port: Option<u16>,
}

impl DeniedPacket {
    /// What the beginning of an IPv4 packet says; none where it is none.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let (version, words) = (header[0] >> 4, usize::from(header[0] & 0xf));
        if version != 4 || words < 5 {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 4] = *header.get(at..)?.first_chunk()?;
            Some(Ipv4Addr::from(octets))
        };
        let protocol = header[9];
        // Only the first fragment has ports.
        let begins = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        let port = || {
            Some(u16::from_be_bytes(
                *packet.get(words * 4 + 2..)?.first_chunk()?,
            ))
        };
        Some(Self {
            protocol,
            source: address(12)?,
            destination: address(16)?,
            port: matches!(protocol, TCP | UDP)
                .then(port)
                .flatten()
                .filter(|_| begins),
        })
    }
}

/// A message of the log with this packet, as the kernel sends them.
#[must_use]
pub fn log_message(packet: &[u8]) -> Vec<u8> {
    Message::netfilter(LOG, PACKET, 0, 2, 0)
        .with(PAYLOAD, packet)
        .finish()
}

/// A socket that a group of this thread's namespace is logged to.
pub(super) fn bind(group: u16) -> io::Result<OwnedFd> {
    let socket = Socket::open(Some(NETFILTER))?;
    let configure = |kind, value: &[u8]| {
        let message = Message::netfilter(LOG, CONFIGURE, 0, 0, group);
        message.with(kind, value).acknowledged()
    };
    for message in [
        configure(COMMAND, &[BIND]),
        configure(MODE, &[0, 0, 0, LENGTH, COPY, 0]),
        // Each at once: there are few.
        configure(THRESHOLD, &1_u32.to_be_bytes()),
    ] {
        socket.ask(vec![message])?;
    }
    Ok(socket.into_fd())
}

/// Packets of a network that were denied: a few of them, not all. While it is open, so is the namespace.
#[derive(Debug)]
pub struct DeniedLog {
    socket: AsyncFd<OwnedFd>,
    waiting: VecDeque<DeniedPacket>,
}

impl DeniedLog {
    /// Listens to a socket that messages of the log come to, and that does not block. In a runtime of tokio.
    ///
    /// # Errors
    /// When the socket cannot be waited for.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives, and the
        // registration owns it.
        let socket = unsafe { AsyncFd::register(socket) }?;
        let waiting = VecDeque::new();
        Ok(Self { socket, waiting })
    }

    /// The next one. Nothing is lost where it is not waited for to the end.
    ///
    /// # Errors
    /// When there will be no more.
    pub async fn next(&mut self) -> io::Result<DeniedPacket> {
        loop {
            if let Some(packet) = self.waiting.pop_front() {
                return Ok(packet);
            }
            let mut ready = self.socket.readable().await?;
            let mut buffer = [0; BUFFER];
            match recv(ready.get_inner(), &mut buffer[..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((length, _)) => self.waiting.extend(packets(&buffer[..length])),
                Err(Errno::AGAIN) => ready.clear_ready(),
                // More came than there was room for: the others are as good.
                Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn packets(received: &[u8]) -> impl Iterator<Item = DeniedPacket> {
    let kind = u16::from_be_bytes([LOG, PACKET]);
    netlink::messages_in(received)
        .filter(move |(found, _)| *found == kind)
        .filter_map(|(_, body)| netlink::attribute(body.get(4..)?, PAYLOAD))
        .filter_map(DeniedPacket::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet with options of this many words, and what comes after its header.
    fn packet(protocol: u8, options: u8, fragment: u16, rest: &[u8]) -> Vec<u8> {
        let [high, low] = fragment.to_be_bytes();
        let mut packet = vec![0x45 + options, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0];
        packet.extend([10, 0, 2, 15, 169, 254, 169, 254]);
        packet.resize(20 + usize::from(options) * 4, 0xff);
        packet.extend(rest);
        packet
    }

    const PORTS: [u8; 4] = [0x80, 0, 0, 80];

    #[test]
    fn a_packet_is_read() {
        let read = |packet: &[u8]| DeniedPacket::parse(packet).unwrap();
        let tcp = read(&packet(TCP, 0, 0x4000, &PORTS));
        assert_eq!(
            tcp,
            DeniedPacket {
                protocol: TCP,
                source: Ipv4Addr::new(10, 0, 2, 15),
                destination: Ipv4Addr::new(169, 254, 169, 254),
                port: Some(80),
            }
        );
        // All there can be of options is as much as is copied.
        let longest = packet(UDP, 10, 0, &PORTS);
        assert_eq!(longest.len(), usize::from(LENGTH));
        assert_eq!(read(&longest).port, Some(80));
        // Another protocol, a later fragment, the first fragment.
        assert_eq!(read(&packet(1, 0, 0, &PORTS)).port, None);
        assert_eq!(read(&packet(TCP, 0, 0x2001, &PORTS)).port, None);
        assert_eq!(read(&packet(TCP, 0, 0x2000, &PORTS)).port, Some(80));
    }

    #[test]
    fn what_is_short_or_odd_is_no_packet_or_has_no_port() {
        for options in [0, 10] {
            let whole = packet(TCP, options, 0, &PORTS);
            for length in 0..whole.len() {
                let read = DeniedPacket::parse(&whole[..length]);
                assert_eq!(read.is_some(), length >= 20, "{length}");
                assert!(read.is_none_or(|read| read.port.is_none()), "{length}");
            }
        }
        // Version 6, no version, a header that is shorter than a header, and all of one byte.
        for first in [0x65, 0x05, 0x44, 0x40] {
            let mut odd = packet(TCP, 0, 0, &PORTS);
            odd[0] = first;
            assert_eq!(DeniedPacket::parse(&odd), None, "{first:#x}");
        }
        for byte in 0..=u8::MAX {
            let _ = DeniedPacket::parse(&[byte; 64]);
        }
    }

    #[tokio::test]
    async fn the_log_gives_packets_and_ends() {
        use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, its) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut log = DeniedLog::new(its).unwrap();
        let message = |protocol| log_message(&packet(protocol, 0, 0, &PORTS));
        let odd = Message::new(3, 0, &[1, 2, 3, 4]).finish();
        let none = log_message(&[0x45; 7]);
        let no_payload = Message::netfilter(LOG, PACKET, 0, 2, 0).with(1, &[0; 4]);
        let all = [odd, none, no_payload.finish(), message(TCP), message(UDP)].concat();
        send(&ours, &[1, 2, 3], SendFlags::empty()).unwrap();
        send(&ours, &all, SendFlags::empty()).unwrap();
        assert_eq!(log.next().await.unwrap().protocol, TCP);
        assert_eq!(log.next().await.unwrap().protocol, UDP);
        drop(ours);
        let end = log.next().await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
}
