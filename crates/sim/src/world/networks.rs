//! Networks: who listens to what they deny.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use cowslip_host::netns::log_message;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::World;

impl World {
    /// The socket that a network's log comes to, for its one listener. It ends with the network.
    pub(crate) fn listen(&self, network: &Path) -> io::Result<OwnedFd> {
        let mut inner = self.lock();
        // One that nobody listens to any more takes nothing.
        if inner
            .logs
            .get(network)
            .is_some_and(|log| tell(log, &[]).is_ok())
        {
            return Err(ErrorKind::ResourceBusy.into());
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        inner.logs.insert(network.to_owned(), ours);
        Ok(its)
    }

    /// A network denies an IPv4 packet and logs it: whoever listens is told.
    pub fn deny(&self, network: &Path, packet: &[u8]) {
        if let Some(log) = self.lock().logs.get(network) {
            // What has no room is lost, as it is in the kernel.
            let _ = tell(log, packet);
        }
    }
}

fn tell(log: &OwnedFd, packet: &[u8]) -> Result<(), Errno> {
    match send(log, &log_message(packet), SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}
