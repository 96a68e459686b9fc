//! Ports of the host that lead to a guest.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{NO_PORT, port};

/// What carries the packets of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to one of the guest: `[ADDRESS:]PORT:PORT[/udp]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublishedPort {
    /// The host's address; none: all that it has.
    pub address: Option<Ipv4Addr>,
    /// The port there.
    pub host: NonZeroU16,
    /// The port of the guest.
    pub guest: NonZeroU16,
    /// What carries its packets.
    pub transport: Transport,
}

/// Why a text is no published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" cannot be published: {why}; write [ADDRESS:]PORT:PORT[/udp], the host's port first (8080:80, \
     127.0.0.1:5353:53/udp)"
)]
pub struct PublishError {
    text: String,
    why: &'static str,
}

impl PublishedPort {
    /// Whether both cannot be there at once.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        let same = match (self.address, other.address) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        same && self.host == other.host && self.transport == other.transport
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.transport {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

impl TryFrom<String> for PublishedPort {
    type Error = PublishError;

    fn try_from(text: String) -> Result<Self, PublishError> {
        text.parse()
    }
}

impl From<PublishedPort> for String {
    fn from(value: PublishedPort) -> Self {
        value.to_string()
    }
}

impl FromStr for PublishedPort {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let refused = |why| PublishError {
            text: text.chars().take(80).collect(),
            why,
        };
        let (ports, transport) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err(refused("only tcp and udp have ports")),
        };
        if ports.contains('[') {
            return Err(refused("guests speak IPv4 only"));
        }
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, host, guest) = match *parts {
            [host, guest] => (None, host, guest),
            [address, host, guest] => {
                let address: Ipv4Addr = address
                    .parse()
                    .map_err(|_| refused("its address is none of IPv4"))?;
                // All addresses are written in one way only.
                (Some(address).filter(|a| !a.is_unspecified()), host, guest)
            }
            _ => return Err(refused("it is not of two ports")),
        };
        let port = |text: &str| port(text).ok_or_else(|| refused(NO_PORT));
        Ok(Self {
            address,
            host: port(host)?,
            guest: port(guest)?,
            transport,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> PublishedPort {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_is_written_as_it_is_read() {
        for text in [
            "8080:80",
            "127.0.0.1:8080:80",
            "53:53/udp",
            "10.0.0.1:1:65535/udp",
        ] {
            assert_eq!(port(text).to_string(), text);
        }
        assert_eq!(port("8080:80/tcp"), port("8080:80"));
        assert_eq!(port("0.0.0.0:8080:80"), port("8080:80"));
    }

    #[test]
    fn what_is_no_port_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "two ports"),
            ("80", "two ports"),
            ("a:80", "from 1 to 65535"),
            ("0:80", "from 1 to 65535"),
            ("80:65536", "from 1 to 65535"),
            ("80:+80", "from 1 to 65535"),
            ("host:80:80", "none of IPv4"),
            ("1.2.3:80:80", "none of IPv4"),
            ("[::1]:80:80", "IPv4 only"),
            ("80:80/sctp", "only tcp and udp"),
            ("80:80/udp/udp", "only tcp and udp"),
            ("1:2:3:4", "two ports"),
        ] {
            let error = text.parse::<PublishedPort>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn all_addresses_clash_with_each() {
        assert!(port("80:1").clashes(&port("127.0.0.1:80:2")));
        assert!(port("127.0.0.1:80:1").clashes(&port("127.0.0.1:80:1")));
        assert!(!port("127.0.0.1:80:1").clashes(&port("127.0.0.2:80:1")));
        assert!(!port("80:1").clashes(&port("80:1/udp")));
        assert!(!port("80:1").clashes(&port("81:1")));
    }
}
