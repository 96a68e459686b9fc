//! Connections whose other end is gone: sock_diag(7).
//!
//! A restored guest has the connections that it had when it was saved. Who was at their other ends has
//! given them up, or speaks with a sibling: a program would wait for ever for an answer. So they are
//! aborted, and it is told at once. What is wholly within the guest lives on, as do listeners.

use std::io;
use std::net::Ipv6Addr;

use rustix::io::Errno;
use rustix::net::netlink;

use super::netlink::{Message, Socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// All states of linux/tcp_states.h but TIME_WAIT (6), CLOSE (7) and LISTEN (10).
const CONNECTED: u32 = 0b1_1011_0011_1110;
/// Where `struct inet_diag_sockid` is in an answer, and its length, in bytes.
const ID: usize = 4;
const ID_LENGTH: usize = 48;

/// Aborts every TCP connection of this network namespace that leaves the guest. Gives back how many
/// there were; a kernel that cannot has none.
pub(crate) fn reset() -> io::Result<usize> {
    let mut reset = 0;
    for family in [AF_INET, AF_INET6] {
        match reset_family(family) {
            Ok(some) => reset += some,
            Err(e) if is_unsupported(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(reset)
}

/// Built without it, or as a module that is not loaded.
fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::OPNOTSUPP, Errno::NOENT, Errno::PROTONOSUPPORT];
    unsupported
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

fn reset_family(family: u8) -> io::Result<usize> {
    let mut socket = Socket::open(Some(netlink::SOCK_DIAG))?;
    let mut open = Vec::new();
    let all = [0; ID_LENGTH];
    socket.dump(request(SOCK_DIAG_BY_FAMILY, family, &all), |answer| {
        let id = answer.get(ID..).and_then(|rest| rest.first_chunk());
        open.extend(id.filter(|id| leaves(family, id)).copied());
    })?;
    let mut reset = 0;
    for id in open {
        match socket.ask(request(SOCK_DESTROY, family, &id)) {
            Ok(()) => reset += 1,
            // It has ended meanwhile.
            Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(reset)
}

/// `struct inet_diag_req_v2`: family, protocol, extensions, states, and which socket.
fn request(kind: u16, family: u8, id: &[u8; ID_LENGTH]) -> Message {
    Message::new(kind, 0)
        .fields(&[family, IPPROTO_TCP, 0, 0])
        .fields(&CONNECTED.to_ne_bytes())
        .fields(id)
}

/// Is its other end elsewhere? Ports, then the addresses of source and destination, 16 bytes each, of
/// which IPv4 uses the first four.
fn leaves(family: u8, id: &[u8; ID_LENGTH]) -> bool {
    let address = |at: usize| {
        let mut octets = [0; 16];
        if family == AF_INET {
            octets[10..12].copy_from_slice(&[0xff; 2]);
            octets[12..].copy_from_slice(&id[at..at + 4]);
        } else {
            octets.copy_from_slice(&id[at..at + 16]);
        }
        Ipv6Addr::from(octets).to_canonical()
    };
    let (source, destination) = (address(4), address(20));
    // To one's own address is by loopback too.
    !source.is_loopback() && !destination.is_loopback() && source != destination
}
