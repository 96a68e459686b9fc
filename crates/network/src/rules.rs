//! The rules of the host, as a script of nft(8): it replaces its table by one transaction, or fails and changes nothing.
//!
//! Nothing in it is text from outside: addresses, ports and names of our own only.

use std::fmt;
use std::net::Ipv4Addr;

use cowslip_model::InstanceId;
use cowslip_model::network::{PublishedPort, Transport};

use crate::{AddressRange, LINKS};

/// The rules of the host: of all sandboxes of an engine.
#[derive(Debug, Clone)]
pub struct HostRules<'a> {
    /// Whose.
    pub instance: InstanceId,
    /// The addresses of its sandboxes.
    pub range: AddressRange,
    /// The ports that are published, each with the sandbox's address.
    pub published: Vec<(&'a PublishedPort, Ipv4Addr)>,
}

impl HostRules<'_> {
    /// The table's name.
    #[must_use]
    pub fn table(instance: InstanceId) -> String {
        format!("cowslip-{instance}")
    }

    /// What takes the table away.
    #[must_use]
    pub fn none(instance: InstanceId) -> String {
        let table = Self::table(instance);
        format!("table inet {table}\ndelete table inet {table}\n")
    }

    /// What the names of the host's ends of all links begin with.
    #[must_use]
    pub fn link_prefix(instance: InstanceId) -> String {
        let text = instance.to_string();
        format!("{LINKS}{}.", text.get(..6).unwrap_or(&text))
    }

    fn ports(&self, transport: Transport, at: bool) -> String {
        let mut elements: Vec<String> = self
            .published
            .iter()
            .filter(|(port, _)| port.transport == transport && port.address.is_some() == at)
            .map(|(port, sandbox)| {
                let key = match port.address {
                    Some(address) => format!("{address} . {}", port.host),
                    None => port.host.to_string(),
                };
                format!("{key} : {sandbox} . {}", port.guest)
            })
            .collect();
        elements.sort_unstable();
        match elements.is_empty() {
            true => String::new(),
            false => format!("\n\t\telements = {{ {} }}", elements.join(", ")),
        }
    }
}

impl fmt::Display for HostRules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, range) = (Self::table(self.instance), self.range);
        let links = format!("\"{}*\"", Self::link_prefix(self.instance));
        writeln!(
            f,
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{"
        )?;
        for transport in [Transport::Tcp, Transport::Udp] {
            for (name, key, at) in [
                ("at", "ipv4_addr . inet_service", true),
                ("all", "inet_service", false),
            ] {
                let elements = self.ports(transport, at);
                writeln!(
                    f,
                    "\tmap {transport}_{name} {{\n\t\ttype {key} : ipv4_addr . inet_service{elements}\n\t}}"
                )?;
            }
        }
        writeln!(f, "\tchain publish {{")?;
        for transport in [Transport::Tcp, Transport::Udp] {
            writeln!(
                f,
                "\t\tmeta l4proto {transport} dnat ip to ip daddr . {transport} dport map @{transport}_at\n\
                 \t\tmeta l4proto {transport} fib daddr type local dnat ip to {transport} dport map @{transport}_all"
            )?;
        }
        writeln!(
            f,
            "\t}}\n\
             \tchain guests {{\n\
             \t\ttype nat hook prerouting priority dstnat - 1; policy accept;\n\
             \t\tmeta nfproto ipv4 iifname {links} fib daddr type local redirect comment \"to the host: no other table leads it elsewhere\"\n\t}}\n\
             \tchain prerouting {{\n\
             \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
             \t\tmeta nfproto ipv4 jump publish\n\t}}\n\
             \tchain output {{\n\
             \t\ttype nat hook output priority -100; policy accept;\n\
             \t\tmeta nfproto ipv4 jump publish\n\t}}\n\
             \tchain postrouting {{\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip saddr {range} oifname != {links} masquerade\n\
             \t\tip saddr 127.0.0.0/8 oifname {links} masquerade comment \"published on loopback\"\n\t}}\n\
             \tchain forward {{\n\
             \t\ttype filter hook forward priority filter; policy accept;\n\
             \t\tiifname {links} jump outward\n\
             \t\toifname {links} jump inward\n\t}}\n\
             \tchain outward {{\n\
             \t\toifname {links} drop comment \"other sandboxes\"\n\
             \t\tip saddr {range} accept\n\
             \t\tdrop\n\t}}\n\
             \tchain inward {{\n\
             \t\tct state established,related accept\n\
             \t\tct status dnat accept\n\
             \t\tdrop\n\t}}\n\
             \tchain input {{\n\
             \t\ttype filter hook input priority filter; policy accept;\n\
             \t\tiifname {links} ct state established,related accept\n\
             \t\tiifname {links} meta l4proto tcp reject with tcp reset comment \"the host itself\"\n\
             \t\tiifname {links} reject with icmp type admin-prohibited\n\t}}\n}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;

    #[test]
    fn the_rules_of_the_host() {
        let ports: Vec<PublishedPort> = ["8080:80", "127.0.0.1:8081:80", "53:53/udp", "443:8443"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let range = AddressRange::default();
        let sandbox = |slot| range.addresses(Slot(slot)).unwrap().sandbox;
        let rules = HostRules {
            instance: "00000000000000aa".parse().unwrap(),
            range,
            published: ports.iter().zip((0..).map(sandbox)).collect(),
        };
        insta::assert_snapshot!(rules.to_string());
    }

    #[test]
    fn names_of_links_fit() {
        let instance = "0123456789abcdef".parse().unwrap();
        let name = format!("{}{:x}", HostRules::link_prefix(instance), u16::MAX);
        assert_eq!(name, "cow012345.ffff");
        assert!(name.len() <= 15);
    }
}
