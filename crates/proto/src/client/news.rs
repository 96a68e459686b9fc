//! What a guest is told about itself.

use std::net::Ipv4Addr;

use crate::pb;

/// What a guest that was just restored is told.
#[derive(Clone, Debug, Default)]
pub struct Restore {
    /// A number that this guest was not told last; telling it again changes nothing.
    pub generation: u64,
    /// Mixed into the guest's random pool: fresh for every guest.
    pub entropy: Vec<u8>,
    /// A new name; `None` leaves the old one.
    pub hostname: Option<String>,
    /// A new machine id, 32 hexadecimal digits; `None` leaves the old one.
    pub machine_id: Option<String>,
    /// Abort every TCP connection that is not on loopback: its other end is not there any more, and
    /// a program learns it at once.
    pub reset_connections: bool,
}

impl Restore {
    pub(super) fn into_pb(self, realtime_ns: i64) -> pb::RestoredRequest {
        pb::RestoredRequest {
            generation: self.generation,
            realtime_ns,
            entropy: self.entropy,
            hostname: self.hostname.unwrap_or_default(),
            machine_id: self.machine_id.unwrap_or_default(),
            reset_connections: self.reset_connections,
        }
    }
}

/// What a guest is told once, at its first boot.
#[derive(Clone, Debug, Default)]
pub struct Configure {
    /// As in [`Restore`].
    pub generation: u64,
    /// Mixed into the guest's random pool.
    pub entropy: Vec<u8>,
    /// `None` leaves the kernel's.
    pub hostname: Option<String>,
    /// `None` leaves the image's.
    pub machine_id: Option<String>,
    /// Environment of every process.
    pub env: Vec<(String, String)>,
    /// Grow the root file system to the size of its disk.
    pub grow_root: bool,
    /// Its interface; `None`: it has only its own loopback.
    pub network: Option<GuestNetwork>,
}

impl Configure {
    pub(super) fn into_pb(self, realtime_ns: i64) -> pb::ConfigureRequest {
        pb::ConfigureRequest {
            generation: self.generation,
            hostname: self.hostname.unwrap_or_default(),
            realtime_ns,
            entropy: self.entropy,
            env: self.env.into_iter().collect(),
            grow_root: self.grow_root,
            machine_id: self.machine_id.unwrap_or_default(),
            network: self.network.map(GuestNetwork::into_pb),
        }
    }
}

/// The guest's one interface, and what it reaches by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNetwork {
    /// The hardware address by which the guest finds the interface.
    pub mac: [u8; 6],
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of the prefix of its network, at most 32.
    pub prefix: u8,
    /// Where everything else is sent.
    pub gateway: Ipv4Addr,
    /// Whom it asks for names; without any its `/etc/resolv.conf` is left as it is.
    pub resolvers: Vec<Ipv4Addr>,
}

impl GuestNetwork {
    fn into_pb(self) -> pb::Network {
        pb::Network {
            mac: self.mac.to_vec(),
            address: self.address.into(),
            prefix: self.prefix.into(),
            gateway: self.gateway.into(),
            resolvers: self.resolvers.into_iter().map(u32::from).collect(),
        }
    }
}
