//! Whom guests ask for names.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use cowslip_model::NetworkSpec;

use crate::Engine;

const RESOLV_CONF: &str = "/etc/resolv.conf";

impl Engine {
    /// The resolver of the host that a guest's questions are passed on to; none: the engine answers them.
    pub(crate) fn upstream_of(&self, spec: &NetworkSpec) -> Option<Ipv4Addr> {
        if spec.has_names() {
            return None;
        }
        if !self.config.network.resolvers.is_empty() {
            return usable(self.config.network.resolvers.iter().copied());
        }
        let text = std::fs::read_to_string(Path::new(RESOLV_CONF)).unwrap_or_default();
        first_server(&text)
    }
}

/// The first server of a resolv.conf(5), if it can be asked by a guest.
fn first_server(text: &str) -> Option<Ipv4Addr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)?.parse().ok()
    };
    usable(text.lines().filter_map(server))
}

/// The first of IPv4, if packets can be passed on to it: one on the host's loopback hears nobody else.
fn usable(servers: impl Iterator<Item = IpAddr>) -> Option<Ipv4Addr> {
    let mut servers = servers.filter_map(|server| match server {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    servers
        .next()
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_resolver_is_asked_if_it_can_be() {
        let server = |text| first_server(text).map(|address| address.to_string());
        assert_eq!(
            server("# c\nsearch a\nnameserver 192.168.1.1\nnameserver 8.8.8.8\n").as_deref(),
            Some("192.168.1.1")
        );
        assert_eq!(
            server("nameserver fe80::1%eth0\nnameserver 10.0.0.2\n").as_deref(),
            Some("10.0.0.2")
        );
        assert_eq!(server("nameserver 127.0.0.53\noptions edns0\n"), None);
        assert_eq!(server("nameserver\nnameservers 1.1.1.1\n"), None);
        assert_eq!(server(""), None);
    }
}
