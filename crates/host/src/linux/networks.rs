//! Networks of the real host.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use cowslip_ledger::{Held, Reservation};
use cowslip_model::PublishedPort;

use super::LinuxHost;
use crate::error::HostError;
use crate::host::Networks;
use crate::netns::{self, Count, DeniedLog, DroppingChain, Element, Netns, NetnsSpec, TableSocket};

impl Networks for LinuxHost {
    fn make_netns(&self, slot: Reservation<Netns>, rules: &str) -> Result<Held<Netns>, HostError> {
        self.own_netns(slot.spec())?;
        netns::acquire(slot, rules)
    }

    fn lacks_networks(&self) -> Option<String> {
        netns::lacks()
    }

    fn set_forwarding(&self, really: bool) -> Result<bool, HostError> {
        netns::set_forwarding(really)
    }

    fn forwarding_is_dropped(&self, links: &str) -> Result<Vec<DroppingChain>, HostError> {
        netns::forwarding_is_dropped(links)
    }

    fn resolv_conf(&self) -> Result<String, HostError> {
        netns::resolv_conf()
    }

    fn addresses(&self) -> Result<Vec<Ipv4Addr>, HostError> {
        netns::addresses()
    }

    fn has_address(&self, address: Ipv4Addr) -> bool {
        netns::has_address(address)
    }

    fn port_holder(&self, port: &PublishedPort) -> Result<Option<String>, HostError> {
        netns::port_holder(port)
    }

    fn open_tap(&self, netns: &NetnsSpec) -> Result<OwnedFd, HostError> {
        self.own_netns(netns)?;
        netns::open_tap(netns)
    }

    fn listen_in(
        &self,
        netns: &NetnsSpec,
        address: SocketAddrV4,
    ) -> Result<(UdpSocket, TcpListener), HostError> {
        self.own_netns(netns)?;
        netns::listen(netns, address)
    }

    fn reload_netns(&self, netns: &NetnsSpec, rules: &str) -> Result<(), HostError> {
        self.own_netns(netns)?;
        netns::reload(netns, rules)
    }

    fn load_host_rules(&self, rules: &str) -> Result<(), HostError> {
        netns::load_host_rules(rules)
    }

    fn open_addresses(
        &self,
        netns: &NetnsSpec,
        table: &str,
        elements: &[Element],
        kept: &mut TableSocket,
    ) -> Result<(), HostError> {
        self.own_netns(netns)?;
        netns::open_addresses(netns, table, elements, kept)
    }

    fn count(&self, netns: &NetnsSpec, table: &str, counter: &str) -> Result<Count, HostError> {
        self.own_netns(netns)?;
        netns::count(netns, table, counter)
    }

    fn denied_log(&self, netns: &NetnsSpec, group: u16) -> Result<DeniedLog, HostError> {
        self.own_netns(netns)?;
        netns::denied_log(netns, group)
    }

    fn has_packet_log(&self) -> Result<bool, HostError> {
        netns::has_packet_log()
    }

    fn shape_netns(&self, netns: &NetnsSpec, bandwidth: Option<u64>) -> Result<(), HostError> {
        self.own_netns(netns)?;
        netns::shape(netns, bandwidth)
    }
}
