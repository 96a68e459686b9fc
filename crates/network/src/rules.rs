//! The rules, as scripts of nft(8): each replaces its table by one transaction, or fails and changes nothing.
//!
//! Nothing in them is text from outside: addresses, ports and names of our own only.

use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use cowslip_model::network::{CLOSED, Destination, NetworkRule, PublishedPort, Transport};
use cowslip_model::{InstanceId, NetworkSpec};
use ipnet::Ipv4Net;

use crate::{AddressRange, GATEWAY, GUEST, RESOLVER, SlotAddresses, TAP, UPLINK};

/// The table's name in a sandbox's namespace.
pub const TABLE: &str = "cowslip";

/// The rules in a sandbox's namespace: what the guest may reach, and how its packets are translated.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// What the user says.
    pub spec: &'a NetworkSpec,
    /// The ends of the namespace's link.
    pub addresses: SlotAddresses,
    /// Addresses of all sandboxes, which are closed like the host's other networks.
    pub range: AddressRange,
    /// Whom the guest's questions for names go to. None: to who listens on [`RESOLVER`] in the namespace.
    pub resolver: Option<Ipv4Addr>,
}

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

impl Inside<'_> {
    /// Whether a network is of those that only its own name opens.
    fn is_closed(&self, net: &Ipv4Net) -> bool {
        let range = self.range.net();
        CLOSED
            .iter()
            .chain([&range])
            .any(|closed| closed.contains(net))
    }

    /// What a rule matches, after its names' addresses became sets.
    fn matching(&self, rule: &NetworkRule, set: &str, opens: bool) -> String {
        let mut text = match &rule.to {
            Destination::Net(net) if opens && !self.is_closed(net) => {
                format!("ip daddr {net} ip daddr != @closed")
            }
            Destination::Net(net) => format!("ip daddr {net}"),
            Destination::Host(_) => format!("ip daddr @{set}"),
        };
        if let Some(port) = rule.port {
            let _ = write!(text, " meta l4proto {{ tcp, udp }} th dport {port}");
        }
        text
    }

    fn outward(&self, out: &mut String) {
        let mut line = |text: &str| {
            out.push_str("\t\t");
            out.push_str(text);
            out.push('\n');
        };
        line(&format!("ip saddr != {GUEST} counter name denied drop"));
        line("meta l4proto != { tcp, udp, icmp } counter name denied drop");
        line("ct state established,related accept");
        line("ct state invalid drop");
        if self.resolver.is_some() {
            line("ct status dnat accept comment \"questions for names\"");
        }
        for rule in &self.spec.deny {
            // What a denied name's addresses are is not known until somebody asks, and nobody gets an answer.
            if let Destination::Net(_) = rule.to {
                line(&format!("{} jump refuse", self.matching(rule, "", false)));
            }
        }
        for (index, rule) in self.spec.allow.iter().enumerate() {
            let matching = self.matching(rule, &set_name(index), true);
            line(&format!("{matching} accept"));
        }
        if self.spec.allow.is_empty() {
            line("ip daddr != @closed accept");
        }
        line("jump refuse");
    }

    /// The names of the sets that addresses of allowed names go to, each with the index of its rule.
    fn sets(&self) -> impl Iterator<Item = usize> {
        let named = |(index, rule): (usize, &NetworkRule)| match rule.to {
            Destination::Host(_) => Some(index),
            Destination::Net(_) => None,
        };
        self.spec.allow.iter().enumerate().filter_map(named)
    }
}

/// The set of the addresses that the name of an allowing rule has.
fn set_name(rule: usize) -> String {
    format!("name{rule}")
}

impl fmt::Display for Inside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SlotAddresses { sandbox, .. } = self.addresses;
        let mut closed: Vec<Ipv4Net> = CLOSED.to_vec();
        closed.push(self.range.net());
        let closed = Ipv4Net::aggregate(&closed);
        let closed: Vec<String> = closed.iter().map(ToString::to_string).collect();
        let mut outward = String::new();
        self.outward(&mut outward);
        writeln!(
            f,
            "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{"
        )?;
        writeln!(f, "\tcounter denied {{ }}")?;
        writeln!(
            f,
            "\tset closed {{\n\t\ttype ipv4_addr; flags interval\n\t\telements = {{ {} }}\n\t}}",
            closed.join(", ")
        )?;
        for index in self.sets() {
            let name = set_name(index);
            writeln!(
                f,
                "\tset {name} {{\n\t\ttype ipv4_addr; flags timeout\n\t}}"
            )?;
        }
        writeln!(
            f,
            "\tchain refuse {{\n\
             \t\tcounter name denied\n\
             \t\tmeta l4proto tcp reject with tcp reset\n\
             \t\treject with icmp type admin-prohibited\n\t}}\n\
             \tchain outward {{\n{outward}\t}}\n\
             \tchain inward {{\n\
             \t\tct state established,related accept\n\
             \t\tct status dnat accept comment \"published ports\"\n\
             \t\tdrop\n\t}}\n\
             \tchain forward {{\n\
             \t\ttype filter hook forward priority filter; policy drop;\n\
             \t\tmeta nfproto != ipv4 drop\n\
             \t\tiifname {TAP} oifname {UPLINK} jump outward\n\
             \t\tiifname {UPLINK} oifname {TAP} jump inward\n\t}}\n\
             \tchain input {{\n\
             \t\ttype filter hook input priority filter; policy drop;\n\
             \t\tiifname lo accept\n\
             \t\tct state established,related accept\n\
             \t\tiifname {TAP} ip saddr {GUEST} ip daddr {GATEWAY} icmp type echo-request accept\n\
             \t\tiifname {TAP} ip saddr {GUEST} ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept\n\t}}"
        )?;
        writeln!(
            f,
            "\tchain prerouting {{\n\t\ttype nat hook prerouting priority dstnat; policy accept;"
        )?;
        if let Some(resolver) = self.resolver {
            writeln!(
                f,
                "\t\tiifname {TAP} ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {resolver}"
            )?;
        }
        for port in &self.spec.publish {
            let (transport, port) = (port.transport, port.guest);
            writeln!(
                f,
                "\t\tiifname {UPLINK} ip daddr {sandbox} {transport} dport {port} dnat ip to {GUEST}"
            )?;
        }
        writeln!(
            f,
            "\t}}\n\
             \tchain postrouting {{\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tiifname {TAP} oifname {UPLINK} snat ip to {sandbox}\n\t}}\n}}"
        )
    }
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
        format!("cow{}.", text.get(..6).unwrap_or(&text))
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
             \t\tiifname {links} drop comment \"the host itself\"\n\t}}\n}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;

    fn inside(spec: &NetworkSpec, resolver: Option<Ipv4Addr>) -> String {
        let range = AddressRange::default();
        let addresses = range.addresses(Slot(300)).unwrap();
        let inside = Inside {
            spec,
            addresses,
            range,
            resolver,
        };
        inside.to_string()
    }

    #[test]
    fn the_rules_of_a_sandbox_without_a_word() {
        let resolver = Some(Ipv4Addr::new(192, 168, 1, 1));
        insta::assert_snapshot!(inside(&NetworkSpec::default(), resolver));
    }

    #[test]
    fn the_rules_of_a_sandbox_with_many_words() {
        let words = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let spec = NetworkSpec {
            allow: words(&[
                "0.0.0.0/0:443",
                "*.example.org",
                "10.1.2.3:5432",
                "10.0.0.0/7",
                "deb.debian.org:80",
            ]),
            deny: words(&["1.1.1.0/24", "evil.example", "8.8.8.8:53"]),
            publish: ["8080:80", "127.0.0.1:5353:53/udp"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect(),
            ..NetworkSpec::default()
        };
        insta::assert_snapshot!(inside(&spec, None));
    }

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
