//! The guest's side of its network: one interface, the names that go with it, and connections that a
//! restore has broken.
//!
//! There is no `ip` in a guest: the kernel is asked by netlink messages.

pub(crate) mod connections;
pub(crate) mod interface;
pub(crate) mod names;
mod netlink;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use cowslip_proto::pb;

use interface::Interface;

/// How long the interface may take to come, which its driver brings. Shorter than the host waits for
/// the answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Why the guest has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("{0}")]
    Invalid(&'static str),
    #[error(
        "no interface with the hardware address {} came up in the guest; has its kernel virtio_net?",
        show(mac)
    )]
    Missing { mac: [u8; 6] },
    #[error("cannot {what} in the guest: {source}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn show(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A network as the host described it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
    prefix: u8,
    gateway: Ipv4Addr,
    resolvers: Vec<Ipv4Addr>,
}

impl TryFrom<pb::Network> for Network {
    type Error = NetworkError;

    fn try_from(asked: pb::Network) -> Result<Self, NetworkError> {
        let invalid = NetworkError::Invalid;
        let mac = asked.mac.as_slice().try_into();
        let mac = mac.map_err(|_| invalid("the hardware address has not 6 bytes"))?;
        let prefix = u8::try_from(asked.prefix).ok().filter(|p| *p <= 32);
        let prefix = prefix.ok_or(invalid("the prefix of the network is longer than 32 bits"))?;
        if asked.address == 0 || asked.gateway == 0 {
            return Err(invalid("the network has no address or no gateway"));
        }
        Ok(Self {
            mac,
            address: asked.address.into(),
            prefix,
            gateway: asked.gateway.into(),
            resolvers: asked.resolvers.into_iter().map(Into::into).collect(),
        })
    }
}

impl Network {
    /// Sets the interface up, waiting for it at most `patience`, and says whom to ask for names. Doing it
    /// again changes nothing.
    pub(crate) fn set_up(&self, etc: &Path, patience: Duration) -> Result<(), NetworkError> {
        let failed = |what| move |source| NetworkError::Io { what, source };
        let mac = self.mac;
        let interface = Interface::wait_for(mac, patience)
            .map_err(failed("look for the interface"))?
            .ok_or(NetworkError::Missing { mac })?;
        // Before it is up, when it would look for neighbours.
        interface
            .ipv6_off()
            .map_err(failed("turn IPv6 off on the interface"))?;
        interface
            .address(self.address, self.prefix)
            .map_err(failed("give the interface its address"))?;
        interface.up().map_err(failed("set the interface up"))?;
        interface
            .default_route(self.gateway)
            .map_err(failed("set the route to the gateway"))?;
        names::set_resolvers(etc, &self.resolvers).map_err(failed("write \"/etc/resolv.conf\""))
    }
}
