//! Where a rule leads: addresses or names, and a port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::NO_PORT;

/// What no sandbox reaches unless a rule names it, or a part of it: addresses that are not of the internet. That is
/// the host's own networks, its cloud's metadata (169.254.169.254), and what has no meaning.
pub const CLOSED: [Ipv4Net; 15] = [
    net(0, 0, 0, 0, 8),       // this network
    net(10, 0, 0, 0, 8),      // private
    net(100, 64, 0, 0, 10),   // behind a provider's translation
    net(127, 0, 0, 0, 8),     // loopback
    net(169, 254, 0, 0, 16),  // link-local, metadata services among them
    net(172, 16, 0, 0, 12),   // private
    net(192, 0, 0, 0, 24),    // protocol assignments
    net(192, 0, 2, 0, 24),    // documentation
    net(192, 88, 99, 0, 24),  // 6to4 relays
    net(192, 168, 0, 0, 16),  // private
    net(198, 18, 0, 0, 15),   // benchmarks
    net(198, 51, 100, 0, 24), // documentation
    net(203, 0, 113, 0, 24),  // documentation
    net(224, 0, 0, 0, 4),     // multicast
    net(240, 0, 0, 0, 4),     // reserved, and broadcast
];

const fn net(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

/// Something that a sandbox may or may not reach: `CIDR`, `ADDRESS`, `NAME` or `*.NAME`, with or without `:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkRule {
    /// Where it leads.
    pub to: Destination,
    /// The port there, of TCP and of UDP; none: all, and all protocols.
    pub port: Option<NonZeroU16>,
}

/// Addresses or names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Addresses.
    Net(Ipv4Net),
    /// Whatever addresses a name has.
    Host(HostPattern),
}

/// A name, or all names below one (`*.example.org`, not `example.org` itself). In lower case, without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPattern {
    name: String,
    below: bool,
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" cannot be allowed or denied: {why}")]
pub struct RuleError {
    text: String,
    why: &'static str,
}

/// What DNS allows of a name, in bytes.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

impl HostPattern {
    /// Whether a name is meant; case and a dot at its end make no difference.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        if !self.below {
            return name.eq_ignore_ascii_case(&self.name);
        }
        let Some(label) = name.len().checked_sub(self.name.len() + 1) else {
            return false;
        };
        let (label, rest) = name.as_bytes().split_at(label);
        !label.is_empty() && rest[0] == b'.' && rest[1..].eq_ignore_ascii_case(self.name.as_bytes())
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.contains('*') {
            return Err("\"*\" stands for whole names only, at the beginning: *.example.org");
        }
        if name.len() > NAME_MAX {
            return Err("its name is longer than DNS allows");
        }
        let label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(label) {
            return Err(
                "it is neither an address (1.2.3.4, 10.0.0.0/8) nor a name (example.org, \
                 *.example.org; names of other letters in their xn-- form)",
            );
        }
        // Whatever reads it as an address must not be let through as a name.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
            return Err("it is no whole address, and no name ends in a number");
        }
        Ok(Self {
            name: name.to_ascii_lowercase(),
            below,
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.below { "*." } else { "" };
        write!(f, "{star}{}", self.name)
    }
}

impl fmt::Display for NetworkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Destination::Net(net) if net.prefix_len() == 32 => write!(f, "{}", net.addr())?,
            Destination::Net(net) => write!(f, "{net}")?,
            Destination::Host(pattern) => write!(f, "{pattern}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for NetworkRule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<NetworkRule> for String {
    fn from(value: NetworkRule) -> Self {
        value.to_string()
    }
}

impl FromStr for NetworkRule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let refused = |why| RuleError {
            text: text.chars().take(80).collect(),
            why,
        };
        let six = |text: &str| {
            let address = text.trim_start_matches('[');
            let address = address.split([']', '/']).next().unwrap_or_default();
            matches!(address.parse(), Ok(IpAddr::V6(_)))
        };
        if six(text) {
            return Err(refused("guests speak IPv4 only; leave it out"));
        }
        let (to, port) = match text.rsplit_once(':') {
            None => (text, None),
            Some((to, port)) => {
                let port = super::port(port).ok_or_else(|| refused(NO_PORT))?;
                (to, Some(port))
            }
        };
        let to = match (to.parse::<Ipv4Net>(), to.parse::<Ipv4Addr>()) {
            (Ok(net), _) if net.addr() != net.network() => {
                return Err(refused(
                    "its address has bits beyond the length of the network; write 10.0.0.0/8, or a single address",
                ));
            }
            (Ok(net), _) => Destination::Net(net),
            (_, Ok(address)) => Destination::Net(Ipv4Net::from(address)),
            _ if to.contains('/') => {
                return Err(refused("a network is written 10.0.0.0/8"));
            }
            _ => Destination::Host(HostPattern::parse(to).map_err(refused)?),
        };
        Ok(Self { to, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> NetworkRule {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_is_written_as_it_is_read() {
        for text in [
            "1.2.3.4",
            "1.2.3.4:443",
            "10.0.0.0/8",
            "0.0.0.0/0:53",
            "example.org",
            "*.example.org:8443",
            "xn--bcher-kva.example",
            "_dmarc.example.org",
            "localhost",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule("Example.ORG."), rule("example.org"));
        assert_eq!(rule("1.2.3.4/32"), rule("1.2.3.4"));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "neither an address"),
            (":80", "neither an address"),
            ("10.1.0.0/8", "bits beyond"),
            ("10.0.0.0/33", "written 10.0.0.0/8"),
            ("10.0.0.0/", "written 10.0.0.0/8"),
            ("example.org:0", "from 1 to 65535"),
            ("example.org:65536", "from 1 to 65535"),
            ("example.org:http", "from 1 to 65535"),
            ("example.org:+80", "from 1 to 65535"),
            ("*", "whole names"),
            ("a.*.org", "whole names"),
            ("*example.org", "whole names"),
            ("-a.org", "neither an address"),
            ("a..org", "neither an address"),
            ("a b", "neither an address"),
            ("bücher.example", "neither an address"),
            ("1.2.3", "ends in a number"),
            ("1.2.3.4.5", "ends in a number"),
            ("256.1.1.1", "ends in a number"),
            ("a.0x7f", "ends in a number"),
            ("::1", "IPv4 only"),
            ("fd00::/8", "IPv4 only"),
            ("[fd00::1]:80", "IPv4 only"),
            (&"a.".repeat(130), "longer than DNS"),
            (&format!("{}.org", "a".repeat(64)), "neither an address"),
        ] {
            let error = text.parse::<NetworkRule>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_star_is_what_is_below() {
        let pattern = |text: &str| match rule(text).to {
            Destination::Host(pattern) => pattern,
            Destination::Net(net) => panic!("{net}"),
        };
        let below = pattern("*.example.org");
        for name in ["a.example.org", "b.a.EXAMPLE.org.", "_x.example.org"] {
            assert!(below.matches(name), "{name}");
        }
        for name in [
            "example.org",
            ".example.org",
            "aexample.org",
            "a.example.org.evil",
            "",
        ] {
            assert!(!below.matches(name), "{name}");
        }
        let exact = pattern("example.org");
        assert!(exact.matches("Example.Org.") && exact.matches("example.org"));
        assert!(!exact.matches("a.example.org") && !exact.matches("example.or"));
    }

    #[test]
    fn closed_networks_are_whole_and_apart() {
        for (index, one) in CLOSED.iter().enumerate() {
            assert_eq!(one.addr(), one.network());
            assert!(
                CLOSED[index + 1..]
                    .iter()
                    .all(|two| one < two && !one.contains(two))
            );
        }
        let closed = |text: &str| {
            let address: Ipv4Addr = text.parse().unwrap();
            CLOSED.iter().any(|net| net.contains(&address))
        };
        for address in [
            "169.254.169.254",
            "10.255.255.255",
            "172.31.0.1",
            "192.168.1.1",
            "255.255.255.255",
        ] {
            assert!(closed(address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.0",
            "9.255.255.255",
            "223.255.255.255",
        ] {
            assert!(!closed(address), "{address}");
        }
    }
}
