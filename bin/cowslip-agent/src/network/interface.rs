//! Interfaces, their addresses and routes: rtnetlink(7).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::netlink::{Events, Message, NLM_F_CREATE, NLM_F_REPLACE, Socket, attributes, u32_at};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
/// Multicast group of what happens to interfaces.
const RTMGRP_LINK: u32 = 1;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

/// The loopback interface is the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Sets the loopback interface up; its addresses come with that.
pub(crate) fn loopback_up() -> io::Result<()> {
    Socket::open(None)?.ask(up(LOOPBACK))
}

/// An interface of this guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    index: u32,
    name: String,
}

impl Interface {
    /// The one with a hardware address, as soon as it is there: its driver may just be loading. `None`
    /// when the patience is at its end.
    pub(super) fn wait_for(mac: [u8; 6], patience: Duration) -> io::Result<Option<Self>> {
        // Before the first look: nothing can come unnoticed between the two.
        let events = Events::listen(RTMGRP_LINK)?;
        let mut socket = Socket::open(None)?;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = Self::find(&mut socket, mac)? {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&events, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            events.drain();
        }
    }

    fn find(socket: &mut Socket, mac: [u8; 6]) -> io::Result<Option<Self>> {
        let mut found = None;
        let message = Message::new(RTM_GETLINK, 0).fields(&[0; IFINFOMSG]);
        socket.dump(message, |link| {
            let of = |kind| {
                let rest = link.get(IFINFOMSG..).unwrap_or_default();
                attributes(rest).find_map(|(k, value)| (k == kind).then_some(value))
            };
            if of(IFLA_ADDRESS) == Some(&mac)
                && let (Some(index), Some(name)) = (u32_at(link, 4), of(IFLA_IFNAME))
            {
                let name = name.strip_suffix(b"\0").unwrap_or(name);
                let name = String::from_utf8_lossy(name).into_owned();
                found = Some(Self { index, name });
            }
        })?;
        Ok(found)
    }

    /// Nothing here speaks IPv6, and its neighbours are not to hear that we could. A kernel without
    /// IPv6 has nothing to turn off.
    pub(super) fn ipv6_off(&self) -> io::Result<()> {
        let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
        match fs::write(path, "1") {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Gives it an address; one that it has is no error.
    pub(super) fn address(&self, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
        let message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
            .fields(&[AF_INET, prefix, 0, RT_SCOPE_UNIVERSE])
            .fields(&self.index.to_ne_bytes())
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets());
        Socket::open(None)?.ask(message)
    }

    /// Sets it up.
    pub(super) fn up(&self) -> io::Result<()> {
        Socket::open(None)?.ask(up(self.index))
    }

    /// Sends everything by it that has no other way; an earlier such route is replaced.
    pub(super) fn default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // struct rtmsg: family, lengths of destination and source, service, table, protocol, scope,
        // type; and flags.
        let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
            .fields(&[AF_INET, 0, 0, 0])
            .fields(&[RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST])
            .fields(&[0; 4])
            .attribute(RTA_GATEWAY, &gateway.octets())
            .attribute(RTA_OIF, &self.index.to_ne_bytes());
        Socket::open(None)?.ask(message)
    }
}

fn up(index: u32) -> Message {
    // struct ifinfomsg: family and type, index, flags, which of them change.
    Message::new(RTM_NEWLINK, 0)
        .fields(&[0; 4])
        .fields(&index.to_ne_bytes())
        .fields(&IFF_UP.to_ne_bytes())
        .fields(&IFF_UP.to_ne_bytes())
}
