//! The guest's interface in QEMU: a tap that is given to it, or its own user-mode network.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use cowslip_host::Site;
use cowslip_model::PublishedPort;

use super::passing::Passed;
use crate::{NetworkInterface, NetworkTo, VmmError};

/// The name of the back end.
pub(super) const BACKEND: &str = "network";

/// What the command line says of a network.
#[derive(Debug)]
pub(super) struct NetworkOptions {
    /// The value of `-netdev`.
    pub(super) backend: String,
    /// The guest's hardware address.
    pub(super) mac: String,
}

/// Opens what leads to the network.
pub(super) fn options(
    interface: &NetworkInterface,
    site: &Site,
    passed: &mut Passed,
) -> Result<NetworkOptions, VmmError> {
    let backend = match &interface.to {
        NetworkTo::Namespace(spec) => {
            let tap = passed.add(site.host.open_tap(spec)?);
            format!("tap,id={BACKEND},fd={tap}")
        }
        NetworkTo::User { guest, publish } => user(*guest, publish),
    };
    Ok(NetworkOptions {
        backend,
        mac: interface.mac_text(),
    })
}

/// QEMU's own network has the addresses that guests have anyway.
fn user(guest: Ipv4Addr, publish: &[PublishedPort]) -> String {
    let mut text = format!("user,id={BACKEND},ipv6=off,dhcpstart={guest}");
    for port in publish {
        let address = port.address.map(|address| address.to_string());
        let address = address.unwrap_or_default();
        let (transport, host, inside) = (port.transport, port.host, port.guest);
        // Writing to a string does not fail.
        let _ = write!(
            text,
            ",hostfwd={transport}:{address}:{host}-{guest}:{inside}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_lead_through_the_user_mode_network() {
        let ports = ["8080:80", "127.0.0.1:5353:53/udp"].map(|text| text.parse().unwrap());
        let text = user(Ipv4Addr::new(10, 0, 2, 15), &ports);
        let expected = "user,id=network,ipv6=off,dhcpstart=10.0.2.15,hostfwd=tcp::8080-10.0.2.15:80,\
                        hostfwd=udp:127.0.0.1:5353-10.0.2.15:53";
        assert_eq!(text, expected);
    }
}
