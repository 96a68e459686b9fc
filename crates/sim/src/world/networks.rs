//! Networks: their rules and the host's, and who listens to what they deny.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use cowslip_host::netns::log_message;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::{Inner, World};

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

    /// The rules that a network is under; none: it is not there.
    #[must_use]
    pub fn network_rules(&self, network: &Path) -> Option<String> {
        let inner = self.lock();
        let file = inner.file(network).ok()?;
        Some(String::from_utf8_lossy(&file.head).into_owned())
    }

    /// The host's rules for all networks; none: they were taken away, or never loaded.
    #[must_use]
    pub fn host_rules(&self) -> Option<String> {
        self.lock().host_rules.clone()
    }

    /// A network denies an IPv4 packet and logs it: whoever listens is told.
    pub fn deny(&self, network: &Path, packet: &[u8]) {
        if let Some(log) = self.lock().logs.get(network) {
            // What has no room is lost, as it is in the kernel.
            let _ = tell(log, packet);
        }
    }
}

impl Inner {
    /// Replaces the host's rules, or takes them away by a script without a table of its own.
    pub(crate) fn load_host_rules(&mut self, rules: &str, networks: &Path) {
        self.host_rules = rules.contains('{').then(|| rules.to_owned());
        let mut within = self.entries.keys().filter_map(|path| path.parent());
        if self.host_rules.is_none() && within.any(|parent| parent == networks) {
            self.violation("the host's rules went while there were networks".to_owned());
        }
    }

    /// Notes a network that packets could pass from past the host's rules.
    pub(crate) fn note_network(&mut self, path: &Path) {
        if self.host_rules.is_none() {
            let path = path.display();
            self.violation(format!("\"{path}\" was made before the host's rules"));
        }
    }
}

fn tell(log: &OwnedFd, packet: &[u8]) -> Result<(), Errno> {
    match send(log, &log_message(packet), SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}
