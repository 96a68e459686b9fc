//! The rules in a sandbox's namespace, as a script of nft(8): it replaces its table by one transaction, or fails and
//! changes nothing.
//!
//! Nothing in it is text from outside: addresses, ports and names of our own only.
//!
//! ```text
//!             ┌ begun by the guest ──── policy: deny, allow, names ──┐
//!  outward ───┤                                                      ├─ nothing opens it: denied, refused
//!             └ begun outside ───────── published ports ─────────────┘
//!  inward      the same two questions, of the other end of each packet; nothing opens it: dropped
//! ```
//!
//! Every packet is asked about, not only a connection's first: other rules hold for connections that are there. What they
//! still open goes on, and what they do not ends with the guest's next packet. An address is open for as long as its name
//! leads there, but a connection outlasts that: it bears the mark of its rule, which is made from the rule's words.

use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use cowslip_model::NetworkSpec;
use cowslip_model::network::{CLOSED, Destination, NetworkRule, PublishedPort};
use ipnet::Ipv4Net;

use crate::{AddressRange, GATEWAY, GUEST, RESOLVER, SlotAddresses, TAP, UPLINK};

/// The table's name in a sandbox's namespace.
pub const TABLE: &str = "cowslip";
/// The counter of packets of the guest that nothing opens.
pub const DENIED: &str = "denied";
/// The counter of packets, in both directions, that were too many.
pub const LIMITED: &str = "limited";
/// The group that packets that were denied are logged to, some of them.
pub const LOG_GROUP: u16 = 1;

/// Addresses that one allowed name may have at a time: a guest who is allowed all names below his own may ask for any
/// number.
const NAME_MAX: u32 = 4096;

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
    /// Addresses of the host: what is sent to one is refused here already, and counted with the rest. The host's own rules
    /// refuse those that it gets later.
    pub host: &'a [Ipv4Addr],
    /// Whether some of what is denied is logged, to [`LOG_GROUP`]. Only where the kernel has a log: others refuse rules
    /// that mention it.
    pub log: bool,
}

/// The set of the addresses that the name of an allowing rule has, by the rule's index.
#[must_use]
pub fn set_name(rule: usize) -> String {
    format!("name{rule}")
}

/// What connections bear that were opened by the name of a rule: its words (FNV-1a), so that a rule has the same mark
/// among other rules. Two of the same mark do no more than keep a connection of one alive by the other.
fn mark(rule: &NetworkRule) -> u32 {
    let words = rule.to_string();
    let hash = words.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    // Zero is on whatever nobody has marked.
    hash.max(1)
}

/// One way of packets: which of their ends is the guest's peer, and what becomes of those that nothing opens.
#[derive(Clone, Copy)]
struct Way {
    address: &'static str,
    port: &'static str,
    refusal: &'static str,
}

const OUTWARD: Way = Way {
    address: "daddr",
    port: "dport",
    refusal: "goto refuse",
};
const INWARD: Way = Way {
    address: "saddr",
    port: "sport",
    refusal: "drop",
};

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
    fn matching(&self, rule: &NetworkRule, set: &str, opens: bool, way: Way) -> String {
        let address = way.address;
        let mut text = match &rule.to {
            Destination::Net(net) if opens && !self.is_closed(net) => {
                format!("ip {address} {net} ip {address} != @closed")
            }
            Destination::Net(net) => format!("ip {address} {net}"),
            Destination::Host(_) => format!("ip {address} @{set}"),
        };
        if let Some(port) = rule.port {
            let _ = write!(text, " meta l4proto {{ tcp, udp }} th {} {port}", way.port);
        }
        text
    }

    /// What the guest may begin, asked of each packet of one way.
    fn policy(&self, way: Way) -> Vec<String> {
        let Way {
            address, refusal, ..
        } = way;
        let mut lines = Vec::new();
        if let Some(resolver) = self.resolver {
            lines.push(format!(
                "ct status dnat ip {address} {resolver} accept comment \"questions for names\""
            ));
        }
        for rule in &self.spec.deny {
            // What a denied name's addresses are is not known until somebody asks, and nobody gets an answer.
            if let Destination::Net(_) = rule.to {
                lines.push(format!("{} {refusal}", self.matching(rule, "", false, way)));
            }
        }
        for (index, rule) in self.spec.allow.iter().enumerate() {
            let matching = self.matching(rule, &set_name(index), true, way);
            match rule.to {
                Destination::Net(_) => lines.push(format!("{matching} accept")),
                Destination::Host(_) => {
                    let mark = mark(rule);
                    lines.push(format!("ct mark {mark:#010x} accept"));
                    lines.push(format!("{matching} ct mark set {mark:#010x} accept"));
                }
            }
        }
        if self.spec.allow.is_empty() {
            lines.push(format!("ip {address} != @closed accept"));
        }
        lines
    }

    /// What others may begin, asked of each packet of one way: `port` is the guest's.
    fn published(&self, port: &'static str) -> Vec<String> {
        let line = |published: &PublishedPort| {
            let (transport, guest) = (published.transport, published.guest);
            format!("ct status dnat {transport} {port} {guest} accept")
        };
        self.spec.publish.iter().map(line).collect()
    }

    /// What holds the packets of one way back that are too many.
    fn limit(&self) -> Option<String> {
        let rate = self.spec.limits.packets?;
        // A tenth of a second's at once; never fewer than what TCP begins with. The kernel counts no faster than by
        // nanoseconds.
        let rate = rate.min(1_000_000_000);
        let burst = (rate / 10).max(10);
        Some(format!(
            "limit rate over {rate}/second burst {burst} packets counter name {LIMITED} drop"
        ))
    }

    /// What refuses the host itself, whatever is allowed. Its addresses in closed networks are closed with those.
    fn host(&self) -> Option<String> {
        let host = self.host.iter().map(|address| Ipv4Net::from(*address));
        let mut open: Vec<String> = host
            .filter(|net| !self.is_closed(net))
            .map(|net| net.addr().to_string())
            .collect();
        open.sort_unstable();
        let refusal = OUTWARD.refusal;
        (!open.is_empty()).then(|| {
            format!(
                "ip daddr {{ {} }} {refusal} comment \"the host itself\"",
                open.join(", ")
            )
        })
    }

    fn outward(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.limit().into_iter().collect();
        lines.extend([
            format!("ip saddr != {GUEST} goto discard"),
            "meta l4proto != { tcp, udp, icmp } goto discard".to_owned(),
            "ct state invalid drop".to_owned(),
            // A guest that was restored here: its connections are of another namespace.
            "ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"
                .to_owned(),
            "ct direction reply goto answers".to_owned(),
        ]);
        lines.extend(self.host());
        lines.extend(self.policy(OUTWARD));
        lines.push("ct state related drop comment \"errors about what is not open\"".to_owned());
        lines.push(OUTWARD.refusal.to_owned());
        lines
    }

    fn answers(&self) -> Vec<String> {
        let mut lines = self.published("sport");
        if !lines.is_empty() {
            lines.push("ct status dnat ct state related accept".to_owned());
        }
        lines.push(OUTWARD.refusal.to_owned());
        lines
    }

    fn inward(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.limit().into_iter().collect();
        lines.extend(
            [
                "ct state invalid drop",
                "ct state related accept",
                "ct direction original goto callers",
            ]
            .map(str::to_owned),
        );
        lines.extend(self.policy(INWARD));
        lines.push(INWARD.refusal.to_owned());
        lines
    }

    fn callers(&self) -> Vec<String> {
        let mut lines = self.published("dport");
        lines.push(INWARD.refusal.to_owned());
        lines
    }

    fn denied(&self) -> Vec<String> {
        let mut lines = vec![format!("counter name {DENIED}")];
        if self.log {
            lines.push(format!(
                "limit rate 1/second burst 5 packets log group {LOG_GROUP}"
            ));
        }
        lines
    }

    fn prerouting(&self) -> Vec<String> {
        let SlotAddresses { sandbox, .. } = self.addresses;
        let mut lines = Vec::new();
        if let Some(resolver) = self.resolver {
            lines.push(format!(
                "iifname {TAP} ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {resolver}"
            ));
        }
        for port in &self.spec.publish {
            let (transport, port) = (port.transport, port.guest);
            lines.push(format!(
                "iifname {UPLINK} ip daddr {sandbox} {transport} dport {port} dnat ip to {GUEST}"
            ));
        }
        lines
    }

    fn sets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut closed: Vec<Ipv4Net> = CLOSED.to_vec();
        closed.push(self.range.net());
        let closed = Ipv4Net::aggregate(&closed);
        let closed: Vec<String> = closed.iter().map(ToString::to_string).collect();
        writeln!(
            f,
            "\tset closed {{\n\t\ttype ipv4_addr; flags interval\n\t\telements = {{ {} }}\n\t}}",
            closed.join(", ")
        )?;
        for (index, rule) in self.spec.allow.iter().enumerate() {
            if let Destination::Net(_) = rule.to {
                continue;
            }
            let name = set_name(index);
            writeln!(
                f,
                "\tset {name} {{\n\t\ttype ipv4_addr; flags timeout; size {NAME_MAX}\n\t}}"
            )?;
        }
        Ok(())
    }
}

fn chain(f: &mut fmt::Formatter<'_>, name: &str, lines: &[String]) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    for line in lines {
        writeln!(f, "\t\t{line}")?;
    }
    writeln!(f, "\t}}")
}

impl fmt::Display for Inside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        writeln!(
            f,
            "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\
             \tcounter {DENIED} {{ }}\n\tcounter {LIMITED} {{ }}"
        )?;
        self.sets(f)?;
        chain(f, "denied", &self.denied())?;
        chain(f, "discard", &lines(&["jump denied", "drop"]))?;
        let refuse = [
            "jump denied",
            "meta l4proto tcp reject with tcp reset",
            "reject with icmp type admin-prohibited",
        ];
        chain(f, "refuse", &lines(&refuse))?;
        chain(f, "answers", &self.answers())?;
        chain(f, "outward", &self.outward())?;
        chain(f, "callers", &self.callers())?;
        chain(f, "inward", &self.inward())?;
        writeln!(
            f,
            "\tchain forward {{\n\
             \t\ttype filter hook forward priority filter; policy drop;\n\
             \t\tmeta nfproto != ipv4 drop\n\
             \t\tiifname {TAP} oifname {UPLINK} jump outward\n\
             \t\tiifname {UPLINK} oifname {TAP} jump inward\n\t}}\n\
             \tchain input {{\n\
             \t\ttype filter hook input priority filter; policy drop;\n\
             \t\tiifname lo accept\n\
             \t\tct state established,related accept\n\
             \t\tiifname {TAP} ip saddr {GUEST} ip daddr {GATEWAY} icmp type echo-request accept\n\
             \t\tiifname {TAP} ip saddr {GUEST} ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept\n\t}}\n\
             \tchain output {{\n\
             \t\ttype filter hook output priority filter; policy drop;\n\
             \t\toifname {{ lo, {TAP} }} accept comment \"never to the host: the monitor is in here\"\n\t}}"
        )?;
        let mut prerouting = lines(&["type nat hook prerouting priority dstnat; policy accept;"]);
        prerouting.extend(self.prerouting());
        chain(f, "prerouting", &prerouting)?;
        let sandbox = self.addresses.sandbox;
        let postrouting = [
            "type nat hook postrouting priority srcnat; policy accept;".to_owned(),
            format!("iifname {TAP} oifname {UPLINK} snat ip to {sandbox}"),
        ];
        chain(f, "postrouting", &postrouting)?;
        writeln!(f, "}}")
    }
}

#[cfg(test)]
mod tests {
    use cowslip_model::network::NetworkLimits;

    use super::*;
    use crate::Slot;

    fn inside(spec: &NetworkSpec, resolver: Option<Ipv4Addr>) -> String {
        let range = AddressRange::default();
        let host = [
            "93.184.216.1",
            "10.9.9.1",
            "127.0.0.1",
            "10.200.0.0",
            "1.2.3.4",
        ];
        let host = host.map(|address| address.parse().unwrap());
        let inside = Inside {
            spec,
            addresses: range.addresses(Slot(300)).unwrap(),
            range,
            resolver,
            host: if resolver.is_none() { &host } else { &[] },
            log: resolver.is_none(),
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
            limits: NetworkLimits {
                packets: Some(20_000),
                ..NetworkLimits::default()
            },
            ..NetworkSpec::default()
        };
        insta::assert_snapshot!(inside(&spec, None));
    }

    #[test]
    fn a_rule_has_its_own_mark_whatever_stands_beside_it() {
        let mark = |text: &str| mark(&text.parse().unwrap());
        assert_eq!(mark("example.org"), mark("Example.org."));
        assert_ne!(mark("example.org"), mark("*.example.org"));
        assert_ne!(mark("example.org:80"), mark("example.org:443"));
    }
}
