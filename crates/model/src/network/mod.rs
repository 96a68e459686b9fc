//! What a sandbox may reach, and who may reach it.
//!
//! Without a word a sandbox has the internet and nothing else ([`CLOSED`]). One `--allow` turns that round: only what
//! is allowed is open. What is denied is closed whatever is allowed. Guests speak IPv4 only.

mod destination;
mod publish;

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::destination::{CLOSED, Destination, HostPattern, NetworkRule, RuleError};
pub use self::publish::{PublishError, PublishedPort, Transport};
use crate::monitor::UnknownWord;
use crate::size::ByteSize;

/// How a sandbox is connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// To what its rules let it reach, behind an address of the host.
    #[default]
    Nat,
    /// Through the monitor's own process, with what any program of its user may reach, the host included: for engines
    /// that are not root. Only QEMU.
    User,
    /// Not at all: the guest has no interface but its loopback.
    None,
}

impl NetworkMode {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::User => "user",
            Self::None => "none",
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for NetworkMode {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "nat" => Ok(Self::Nat),
            "user" => Ok(Self::User),
            "none" => Ok(Self::None),
            _ => Err(UnknownWord::new(text, "\"nat\", \"user\" or \"none\"")),
        }
    }
}

/// A sandbox's network: kept through pauses, and given to its forks, but for the ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// How it is connected.
    #[serde(default)]
    pub mode: NetworkMode,
    /// What it may reach; nothing: the internet. `CIDR`, `ADDRESS`, `NAME` or `*.NAME`, each with or without `:PORT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<NetworkRule>,
    /// What it may not reach, whatever is allowed; in the same words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub deny: Vec<NetworkRule>,
    /// Ports of the host that lead to ports of the guest: `[ADDRESS:]PORT:PORT[/udp]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub publish: Vec<PublishedPort>,
    /// How fast it may send, and receive.
    #[serde(default, skip_serializing_if = "NetworkLimits::is_none")]
    pub limits: NetworkLimits,
}

/// How much a sandbox may send in a second, and how much it may receive; none: as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkLimits {
    /// Bytes in a second, in each direction.
    #[serde(default)]
    pub bandwidth: Option<ByteSize>,
    /// Packets in a second, in each direction.
    #[serde(default)]
    pub packets: Option<u64>,
}

impl NetworkLimits {
    /// Whether there is none.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.bandwidth.is_none() && self.packets.is_none()
    }
}

/// Why a network cannot be as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Something that only a connected sandbox can have.
    #[error("{what} has no meaning without a network: leave it out, or take --network nat")]
    NotConnected {
        /// What.
        what: &'static str,
    },
    /// Something that no user-mode network enforces.
    #[error(
        "{what} cannot be kept to in a user-mode network: leave it out, or take --network nat, which needs an engine that \
         is root"
    )]
    NotEnforced {
        /// What.
        what: &'static str,
    },
    /// One port of the host for two ports.
    #[error("{first} and {second} are the same port of the host: publish one of them elsewhere")]
    Twice {
        /// One of the two.
        first: PublishedPort,
        /// The other.
        second: PublishedPort,
    },
    /// More rules than anybody could mean.
    #[error("{count} {what}: give at most {most}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        most: usize,
    },
    /// A limit under which nothing passes.
    #[error("a limit of {what} lets nothing through: give at least {least}")]
    TooSlow {
        /// Of what.
        what: &'static str,
        /// The least that there can be.
        least: &'static str,
    },
}

/// The least bandwidth: some packets of the largest size in a second.
const LEAST_BANDWIDTH: u64 = 16 << 10;
/// Rules of a kind at most: every packet is asked about by all of them.
const RULES_MAX: usize = 256;
/// Published ports at most.
const PORTS_MAX: usize = 256;
const LEAST_PACKETS: u64 = 10;

impl NetworkSpec {
    /// Whether its parts go together.
    ///
    /// # Errors
    /// With what does not.
    pub fn check(&self) -> Result<(), NetworkError> {
        for (count, what, most) in [
            (self.allow.len(), "allowing rules", RULES_MAX),
            (self.deny.len(), "denying rules", RULES_MAX),
            (self.publish.len(), "published ports", PORTS_MAX),
        ] {
            if count > most {
                return Err(NetworkError::TooMany { count, what, most });
            }
        }
        let ruled = match () {
            () if !self.allow.is_empty() => Some("--allow"),
            () if !self.deny.is_empty() => Some("--deny"),
            () if !self.limits.is_none() => Some("a limit of the network"),
            () => None,
        };
        let published = (!self.publish.is_empty()).then_some("--publish");
        match (self.mode, ruled, published) {
            (NetworkMode::None, Some(what), _) | (NetworkMode::None, None, Some(what)) => {
                return Err(NetworkError::NotConnected { what });
            }
            (NetworkMode::User, Some(what), _) => return Err(NetworkError::NotEnforced { what }),
            _ => {}
        }
        for (index, first) in self.publish.iter().enumerate() {
            if let Some(second) = self.publish[index + 1..].iter().find(|p| p.clashes(first)) {
                let (first, second) = (first.clone(), second.clone());
                return Err(NetworkError::Twice { first, second });
            }
        }
        let slow = |value: Option<u64>, least| value.is_some_and(|value| value < least);
        let (what, least) = match () {
            () if slow(self.limits.bandwidth.map(ByteSize::bytes), LEAST_BANDWIDTH) => {
                ("the network's bandwidth", "16K")
            }
            () if slow(self.limits.packets, LEAST_PACKETS) => ("the network's packets", "10"),
            () => return Ok(()),
        };
        Err(NetworkError::TooSlow { what, least })
    }

    /// Of a sandbox without any.
    #[must_use]
    pub fn none() -> Self {
        Self {
            mode: NetworkMode::None,
            ..Self::default()
        }
    }

    /// Whether its rules say which names its guest may ask for: an allow-list does, of names or not (R67), and so does a
    /// denied name.
    #[must_use]
    pub fn governs_names(&self) -> bool {
        let named = |rule: &NetworkRule| matches!(rule.to, Destination::Host(_));
        !self.allow.is_empty() || self.deny.iter().any(named)
    }
}

const NO_PORT: &str = "a port is a number from 1 to 65535";

fn port(text: &str) -> Option<NonZeroU16> {
    text.parse()
        .ok()
        .filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> NetworkSpec {
        NetworkSpec::default()
    }

    #[test]
    fn what_only_a_connected_sandbox_has_is_refused_of_others() {
        let none = NetworkSpec {
            mode: NetworkMode::None,
            ..spec()
        };
        assert_eq!(none.check(), Ok(()));
        let publish = vec!["80:80".parse().unwrap()];
        let limits = NetworkLimits {
            packets: Some(100),
            ..NetworkLimits::default()
        };
        for (spec, word) in [
            (
                NetworkSpec {
                    allow: vec!["a.example".parse().unwrap()],
                    ..none.clone()
                },
                "--allow",
            ),
            (
                NetworkSpec {
                    deny: vec!["1.1.1.1".parse().unwrap()],
                    ..none.clone()
                },
                "--deny",
            ),
            (
                NetworkSpec {
                    publish,
                    ..none.clone()
                },
                "--publish",
            ),
            (
                NetworkSpec {
                    limits,
                    ..none.clone()
                },
                "a limit",
            ),
        ] {
            let error = spec.check().unwrap_err().to_string();
            assert!(error.starts_with(word), "{error}");
        }
    }

    #[test]
    fn a_user_mode_network_keeps_to_no_rule() {
        let user = NetworkSpec {
            mode: NetworkMode::User,
            publish: vec!["80:80".parse().unwrap()],
            ..spec()
        };
        assert_eq!(user.check(), Ok(()));
        let ruled = NetworkSpec {
            deny: vec!["10.0.0.0/8".parse().unwrap()],
            ..user
        };
        let error = ruled.check().unwrap_err().to_string();
        assert!(
            error.contains("--deny") && error.contains("--network nat"),
            "{error}"
        );
    }

    #[test]
    fn a_port_is_published_once() {
        let publish = |ports: &[&str]| NetworkSpec {
            publish: ports.iter().map(|port| port.parse().unwrap()).collect(),
            ..spec()
        };
        for fine in [
            &["80:80", "81:80"][..],
            &["80:80", "80:80/udp"],
            &["127.0.0.1:80:80", "127.0.0.2:80:80"],
        ] {
            assert_eq!(publish(fine).check(), Ok(()));
        }
        for clash in [
            &["80:80", "80:81"][..],
            &["80:80", "1:1", "127.0.0.1:80:80"],
        ] {
            let error = publish(clash).check().unwrap_err();
            assert!(matches!(error, NetworkError::Twice { .. }));
        }
    }

    #[test]
    fn rules_are_bounded() {
        let rule: NetworkRule = "1.1.1.1".parse().unwrap();
        let denied = |count| NetworkSpec {
            deny: vec![rule.clone(); count],
            ..spec()
        };
        assert_eq!(denied(256).check(), Ok(()));
        let error = denied(257).check().unwrap_err().to_string();
        assert!(error.contains("257 denying rules"), "{error}");
    }

    #[test]
    fn limits_let_something_through() {
        let limits = |bandwidth, packets| NetworkSpec {
            limits: NetworkLimits { bandwidth, packets },
            ..spec()
        };
        assert_eq!(limits(Some(ByteSize(16 << 10)), Some(10)).check(), Ok(()));
        assert!(limits(Some(ByteSize(1000)), None).check().is_err());
        assert!(limits(None, Some(0)).check().is_err());
    }

    #[test]
    fn json_is_words() {
        let text = serde_json::json!({
            "mode": "nat",
            "allow": ["*.example.org:443", "10.0.0.0/8"],
            "publish": ["127.0.0.1:8080:80", "53:53/udp"],
        });
        let spec: NetworkSpec = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), text);
        assert!(spec.governs_names());
        let empty: NetworkSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, NetworkSpec::default());
        assert!(serde_json::from_str::<NetworkSpec>("{\"alow\": []}").is_err());
    }
}
