//! Netlink (netlink(7)): messages, and a socket to the kernel of this thread's namespace. For what rtnetlink has no
//! words for.
//!
//! The kernel does what a message asks for, and has its answer ready, before the sending of it returns.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send,
    socket_with, sockopt,
};

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_REPLACE` and `NLM_F_CREATE`.
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_DUMP`.
pub(super) const DUMP: u16 = 0x300;
/// `NLMSG_ERROR`: an error, or zero for "done".
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a list.
const DONE: u16 = 3;
/// `NLA_F_NESTED`, and it with `NLA_F_NET_BYTEORDER`.
const NESTED: u16 = 0x8000;
const FLAGS: u16 = 0xc000;
/// The length of `struct nlmsghdr`, and of `struct nlattr`.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// More than any one answer.
const ANSWER: usize = 64 << 10;
/// What every socket may have on its way.
const SEND_BUFFER: usize = 128 << 10;

/// A message to be: its header, a fixed part, and attributes.
#[derive(Debug, Clone)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A request without attributes yet.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    /// A request of a part of netfilter (`struct nfgenmsg`).
    pub(super) fn netfilter(part: u8, kind: u8, flags: u16, family: u8, resource: u16) -> Self {
        let [high, low] = resource.to_be_bytes();
        let kind = u16::from_be_bytes([part, kind]);
        Self::new(kind, flags, &[family, 0, high, low])
    }

    /// Asks for an answer also when all is well.
    pub(super) fn acknowledged(mut self) -> Self {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | ACKNOWLEDGE;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    /// An attribute more.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// An attribute that is a text.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.with(kind, &value)
    }

    /// An attribute that has others in it.
    pub(super) fn nest(self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let inner = inside(Self(Vec::new()));
        self.with(kind | NESTED, &inner.0)
    }

    /// The message as it is sent.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// The kernel's answer to a request: what comes after its header.
pub(super) type Answer = Vec<u8>;

/// A socket of this thread's namespace. It is of that namespace for ever, whoever has it.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// To netfilter, or to the interfaces where no protocol is given.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        Ok(Self(socket))
    }

    /// Sends messages, one of which at least wants to be acknowledged, and gives what they were answered.
    pub(super) fn ask(&self, messages: Vec<Message>) -> io::Result<Vec<Answer>> {
        let bytes: Vec<u8> = messages.into_iter().flat_map(Message::finish).collect();
        if bytes.len() > SEND_BUFFER {
            sockopt::set_socket_send_buffer_size_force(&self.0, bytes.len())?;
        }
        send(&self.0, &bytes, SendFlags::empty())?;
        let (mut answers, mut done) = (Vec::new(), false);
        let mut buffer = vec![0; ANSWER];
        loop {
            let length = match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            };
            for (kind, body) in messages_in(&buffer[..length]) {
                match (kind, number(body)) {
                    (ERROR, Some(0)) => done = true,
                    // Of the first that is refused. Others were not even looked at because of it, or not kept.
                    (ERROR, code) => {
                        let code = code.unwrap_or(0).wrapping_neg();
                        return Err(io::Error::from_raw_os_error(code));
                    }
                    _ => answers.push(body.to_vec()),
                }
            }
        }
        match done {
            true => Ok(answers),
            false => Err(io::Error::other("the kernel did not answer")),
        }
    }

    /// Sends a request for a list, and gives what is in it.
    pub(super) fn list(&self, request: Message) -> io::Result<Vec<Answer>> {
        send(&self.0, &request.finish(), SendFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; ANSWER];
        loop {
            // As soon as a part is taken the kernel has the next one ready.
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            for (kind, body) in messages_in(&buffer[..length]) {
                match (kind, number(body)) {
                    (DONE, _) => return Ok(answers),
                    (ERROR, code) => {
                        let code = code.unwrap_or(0).wrapping_neg();
                        return Err(io::Error::from_raw_os_error(code));
                    }
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }

    pub(super) fn index(&self, interface: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, interface)?)
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(ATTRIBUTE)
}

fn number(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.first_chunk()?))
}

/// The kinds and the bodies of the messages in what was received; what is no whole message ends them.
pub(super) fn messages_in(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The kinds and the values of attributes; what is no whole attribute ends them.
pub(super) fn attributes_in(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(ATTRIBUTE..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind & !FLAGS, value))
    })
}

/// The value of the first attribute of a kind.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes_in(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_is_written() {
        let message = Message::netfilter(10, 12, CREATE, 1, 7)
            .text(1, "cowslip")
            .nest(3, |list| list.with(5, &[1, 2, 3]).with(6, &[]))
            .acknowledged();
        let bytes = message.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes[6..8], (REQUEST | ACKNOWLEDGE | CREATE).to_ne_bytes());
        let two = [bytes.clone(), bytes].concat();
        let messages: Vec<_> = messages_in(&two).collect();
        let (kind, body) = messages[1];
        assert_eq!((messages.len(), kind), (2, 0x0a0c));
        assert_eq!(body[..4], [1, 0, 0, 7]);
        assert_eq!(attribute(&body[4..], 1), Some(&b"cowslip\0"[..]));
        let list: Vec<_> = attributes_in(attribute(&body[4..], 3).unwrap()).collect();
        assert_eq!(list, [(5, &[1, 2, 3][..]), (6, &[])]);
        assert_eq!(attribute(&body[4..], 2), None);
    }

    #[test]
    fn what_is_cut_off_ends_what_is_read() {
        let whole = Message::new(5, 0, &[])
            .with(1, &[9; 5])
            .with(2, &[8; 4])
            .finish();
        for length in 0..whole.len() {
            assert_eq!(messages_in(&whole[..length]).count(), 0, "{length}");
            let body = whole[..length].get(HEADER..).unwrap_or_default();
            assert!(attributes_in(body).count() < 2, "{length}");
        }
        for bytes in [&[0; 40][..], &[255; 40], &[3, 0, 1, 0], &[15, 0, 0, 0, 1]] {
            assert_eq!(messages_in(bytes).count(), 0);
            assert_eq!(attributes_in(bytes).count(), 0);
        }
    }
}
