//! The kernel's table of connections, of this thread's namespace.

use std::io;

use rustix::net::netlink::NETFILTER;

use super::netlink::{Message, Socket};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const CONNECTIONS: u8 = 1;
const DELETE: u8 = 2;

/// Forgets all: without a word on which, all are meant.
pub(super) fn forget() -> io::Result<()> {
    let message = Message::netfilter(CONNECTIONS, DELETE, 0, 0, 0).acknowledged();
    Socket::open(Some(NETFILTER))?.ask(vec![message]).map(drop)
}
