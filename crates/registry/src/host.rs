//! A registry's address as it is written: a name or an address, and perhaps a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a registry is: `registry.example.com`, `127.0.0.1:5000`, `[::1]:5000`. In lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Host {
    /// Without the brackets of an address of version 6.
    name: String,
    port: Option<u16>,
}

/// The text is no registry's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no address of a registry: give HOST or HOST:PORT, without a scheme", .0.escape_debug())]
pub struct ParseHostError(String);

impl Host {
    /// Docker's own registry, under the name that references have for it.
    pub(crate) fn docker_hub() -> Self {
        Self {
            name: "docker.io".to_owned(),
            port: None,
        }
    }

    /// Whether it is this machine, by its own word: no name is looked up.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.name == "localhost" || self.name.ends_with(".localhost"),
        }
    }

    /// What requests are sent to: Docker's registry has another name there.
    pub(crate) fn authority(&self) -> String {
        match *self == Self::docker_hub() {
            true => "registry-1.docker.io".to_owned(),
            false => self.to_string(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]", self.name)?,
            false => f.write_str(&self.name)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.to_string()
    }
}

impl TryFrom<String> for Host {
    type Error = ParseHostError;

    fn try_from(text: String) -> Result<Self, ParseHostError> {
        text.parse()
    }
}

impl FromStr for Host {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        parse(text).ok_or_else(|| ParseHostError(text.chars().take(80).collect()))
    }
}

fn parse(text: &str) -> Option<Host> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':')?),
            };
            (address.to_string(), port)
        }
        None => {
            let (name, port) = match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            };
            (domain(name)?, port)
        }
    };
    let port = match port {
        None => None,
        // The parser of numbers takes a sign, which no address has.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
    };
    // Both are the same registry, with the same images and credentials.
    match (name.as_str(), port) {
        ("index.docker.io" | "registry-1.docker.io", None) => Some(Host::docker_hub()),
        _ => Some(Host { name, port }),
    }
}

/// A domain name, or an address of version 4, which looks the same.
fn domain(name: &str) -> Option<String> {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (name.len() <= 253 && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_they_are_written() {
        for (text, written) in [
            ("registry.example.com", "registry.example.com"),
            ("Registry.Example.com:443", "registry.example.com:443"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("[0:0::1]:5000", "[::1]:5000"),
            ("[::1]", "[::1]"),
            ("index.docker.io", "docker.io"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.to_string(), written);
            assert_eq!(host.to_string().parse(), Ok(host));
        }
        for bad in [
            "",
            ":",
            "a:",
            ":5000",
            "a:0",
            "a:65536",
            "a:+5",
            "a b",
            "a/b",
            "user@host",
            "http://a",
            "a..b",
            "-a",
            "a-",
            "[::1",
            "[::1]5",
            "[127.0.0.1]",
            "::1",
            "a\n",
            "a:5\n",
            "é.com",
            "a_b",
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn loopback_is_told_without_a_lookup() {
        let loopback = |text: &str| text.parse::<Host>().unwrap().is_loopback();
        assert!(
            [
                "localhost",
                "localhost:5",
                "127.3.2.1",
                "[::1]:5",
                "a.localhost"
            ]
            .map(loopback)
                == [true; 5]
        );
        assert!(
            [
                "example.com",
                "128.0.0.1:5",
                "[::2]",
                "127.0.0.1.example.com",
                "localhost.com"
            ]
            .map(loopback)
                == [false; 5]
        );
    }
}
