//! Messages to the kernel over netlink(7): a builder, and a socket that waits for the answers.
//!
//! Numbers are in the machine's own order. Every part begins at a multiple of four bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Makes what is not there.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// Replaces what is there.
pub(super) const NLM_F_REPLACE: u16 = 0x100;
/// `struct nlmsghdr`, in bytes: length, kind, flags, sequence, sender.
const HEADER: usize = 16;
/// As much as the kernel puts into one answer to a dump.
const ANSWER: usize = 32 * 1024;

/// A message that is being written.
#[derive(Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// `kind` and `flags` of its header; what it is to do in addition is the socket's business.
    pub(super) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    /// The next fields of its fixed part.
    pub(super) fn fields(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// An attribute: `struct rtattr` and its value.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let flags = flags | u16_at(&self.0, 6).unwrap_or(0);
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A netlink socket. Every request is answered before it returns.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// `None` is NETLINK_ROUTE, whose number is 0.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        Ok(Self {
            socket: open(protocol, SocketFlags::CLOEXEC)?,
            sequence: 0,
        })
    }

    /// Has something done; the kernel's refusal is the error.
    pub(super) fn ask(&mut self, message: Message) -> io::Result<()> {
        self.request(message, NLM_F_ACK, |_| ())
    }

    /// Hands everything that the kernel has of a kind to `each`.
    pub(super) fn dump(&mut self, message: Message, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.request(message, NLM_F_DUMP, each)
    }

    fn request(
        &mut self,
        message: Message,
        flags: u16,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message.finish(NLM_F_REQUEST | flags, self.sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &message, SendFlags::empty(), &kernel)?;
        let mut answer = vec![0; ANSWER];
        loop {
            let (_, length) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::TRUNC)?;
            let Some(mut rest) = answer.get(..length) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            while let Some(part) = next_message(&mut rest) {
                if part.sequence != self.sequence {
                    continue;
                }
                match part.kind {
                    NLMSG_ERROR | NLMSG_DONE => return outcome(part.payload),
                    _ => each(part.payload),
                }
            }
        }
    }
}

/// Hears of what happens to the kernel's objects of some multicast groups.
#[derive(Debug)]
pub(super) struct Events(OwnedFd);

impl Events {
    pub(super) fn listen(groups: u32) -> io::Result<Self> {
        let socket = open(None, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// What an event says does not matter: everything is looked at again.
    pub(super) fn drain(&self) {
        let mut buf = [0; 4096];
        while recv(&self.0, &mut buf, RecvFlags::DONTWAIT).is_ok() {}
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(protocol: Option<Protocol>, flags: SocketFlags) -> io::Result<OwnedFd> {
    let kind = SocketType::RAW;
    Ok(socket_with(AddressFamily::NETLINK, kind, flags, protocol)?)
}

struct Part<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn next_message<'a>(rest: &mut &'a [u8]) -> Option<Part<'a>> {
    let length = usize::try_from(u32_at(rest, 0)?).ok()?;
    let part = Part {
        kind: u16_at(rest, 4)?,
        sequence: u32_at(rest, 8)?,
        payload: rest.get(HEADER..length)?,
    };
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(part)
}

/// Both ends begin with 0 or a negated error number; that of a dump may have nothing in it.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map_or(0, u32::cast_signed) {
        0.. => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// The attributes in what follows a message's fixed part.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*field))
}

/// A number at some place of a message.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_out_as_they_went_in() {
        let message = Message::new(16, NLM_F_CREATE)
            .fields(&[9; 4])
            .attribute(1, &[7; 6])
            .attribute(3, b"eth0\0");
        let bytes = message.finish(NLM_F_REQUEST, 5);
        let mut rest = bytes.as_slice();
        let part = next_message(&mut rest).unwrap();
        assert_eq!((part.kind, part.sequence), (16, 5));
        assert!(rest.is_empty());
        let found: Vec<_> = attributes(&part.payload[4..]).collect();
        assert_eq!(found, [(1, &[7; 6][..]), (3, &b"eth0\0"[..])]);
    }

    #[test]
    fn what_ends_too_early_is_no_message() {
        let whole = Message::new(16, 0).attribute(1, &[7; 4]).finish(0, 1);
        for length in 0..whole.len() {
            let mut rest = &whole[..length];
            assert!(next_message(&mut rest).is_none(), "{length}");
        }
        // A length of nothing would never come to an end.
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert!(next_message(&mut &[0; 16][..]).is_none());
    }
}
