//! Networks of the simulated host: files with rules, in which nothing passes.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;

use cowslip_host::{
    Count, DeniedLog, DroppingChain, Element, HostError, Netns, NetnsSpec, Networks, TableSocket,
};
use cowslip_ledger::{Held, Reservation};
use cowslip_model::PublishedPort;

use super::SimHost;
use crate::world::{FileNode, Node};

impl SimHost {
    /// Does something to a network, by its rules. None: it lacks what that needs.
    fn network<T>(
        &self,
        netns: &NetnsSpec,
        operation: &'static str,
        act: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, HostError> {
        let path = &netns.path;
        self.layout.own(path)?;
        self.step(&format!("host: {operation}"), |inner| {
            let file = inner.file(path).map_err(HostError::path("open", path))?;
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            act(&String::from_utf8_lossy(&file.head))
                .ok_or_else(|| HostError::path(operation, path)(missing))
        })
    }
}

/// Whether rules have a table with something of that name.
fn has(rules: &str, table: &str, kind: &str, name: &str) -> bool {
    rules.contains(&format!("table inet {table} {{"))
        && rules.contains(&format!("\t{kind} {name} {{"))
}

impl Networks for SimHost {
    fn make_netns(&self, slot: Reservation<Netns>, rules: &str) -> Result<Held<Netns>, HostError> {
        let path = slot.spec().path.clone();
        self.layout.own(&path)?;
        let inode = self.step("host: make network namespace", |inner| {
            inner.note_network(&path);
            inner
                .create(&path, Node::File(FileNode::whole(rules.as_bytes())))
                .map_err(HostError::path("make", &path))
        })?;
        Ok(slot.acquired(inode)?)
    }

    fn lacks_networks(&self) -> Option<String> {
        None
    }

    fn set_forwarding(&self, _really: bool) -> Result<bool, HostError> {
        Ok(false)
    }

    fn forwarding_is_dropped(&self, _links: &str) -> Result<Vec<DroppingChain>, HostError> {
        Ok(Vec::new())
    }

    fn resolv_conf(&self) -> Result<String, HostError> {
        Ok(String::new())
    }

    fn addresses(&self) -> Result<Vec<Ipv4Addr>, HostError> {
        Ok(vec![Ipv4Addr::LOCALHOST])
    }

    fn has_address(&self, address: Ipv4Addr) -> bool {
        address.is_loopback()
    }

    fn port_holder(&self, _port: &PublishedPort) -> Result<Option<String>, HostError> {
        Ok(None)
    }

    fn open_tap(&self, netns: &NetnsSpec) -> Result<OwnedFd, HostError> {
        let null = Path::new("/dev/null");
        self.layout.own(&netns.path)?;
        let opened = std::fs::File::open(null).map_err(HostError::path("open", null))?;
        Ok(opened.into())
    }

    /// Sockets of this machine's loopback, which nobody speaks to.
    fn listen_in(
        &self,
        netns: &NetnsSpec,
        _address: SocketAddrV4,
    ) -> Result<(UdpSocket, TcpListener), HostError> {
        self.layout.own(&netns.path)?;
        self.step("host: listen in network", |_| {
            let bind = || {
                let loopback = (Ipv4Addr::LOCALHOST, 0);
                let (udp, tcp) = (UdpSocket::bind(loopback)?, TcpListener::bind(loopback)?);
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                Ok((udp, tcp))
            };
            let bound: std::io::Result<_> = bind();
            bound.map_err(HostError::path("listen in the network", &netns.path))
        })
    }

    fn reload_netns(&self, netns: &NetnsSpec, rules: &str) -> Result<(), HostError> {
        let path = &netns.path;
        self.layout.own(path)?;
        self.step("host: reload rules", |inner| {
            let file = inner
                .file_mut(path)
                .map_err(HostError::path("open", path))?;
            *file = FileNode::whole(rules.as_bytes());
            Ok(())
        })
    }

    fn open_addresses(
        &self,
        netns: &NetnsSpec,
        table: &str,
        elements: &[Element],
        _kept: &mut TableSocket,
    ) -> Result<(), HostError> {
        self.network(netns, "open addresses in the network", |rules| {
            let known = |element: &Element| has(rules, table, "set", &element.set);
            elements.iter().all(known).then_some(())
        })
    }

    /// Nothing passes here.
    fn count(&self, netns: &NetnsSpec, table: &str, counter: &str) -> Result<Count, HostError> {
        self.network(netns, "read a counter of the network", |rules| {
            has(rules, table, "counter", counter).then(Count::default)
        })
    }

    /// One that [`World::deny`] writes to.
    fn denied_log(&self, netns: &NetnsSpec, _group: u16) -> Result<DeniedLog, HostError> {
        const OPERATION: &str = "listen to the log of the network";
        let path = &netns.path;
        self.network(netns, OPERATION, |_| Some(()))?;
        let socket = self
            .world
            .listen(path)
            .map_err(HostError::path(OPERATION, path))?;
        DeniedLog::new(socket).map_err(HostError::path(OPERATION, path))
    }

    fn has_packet_log(&self) -> Result<bool, HostError> {
        self.step("host: look for the log of packets", |_| Ok(true))
    }

    fn shape_netns(&self, netns: &NetnsSpec, _bandwidth: Option<u64>) -> Result<(), HostError> {
        self.network(netns, "limit the bandwidth of", |_| Some(()))
    }

    fn load_host_rules(&self, rules: &str) -> Result<(), HostError> {
        self.step("host: load rules", |inner| {
            inner.load_host_rules(rules, &self.layout.networks());
            Ok(())
        })
    }
}
