//! Networks of sandboxes.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::network::{NetworkLimits, NetworkMode, NetworkRule, NetworkSpec, PublishedPort};

/// The network that a sandbox is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// How it is connected; none: as the engine's configuration says.
    #[serde(default)]
    pub mode: Option<NetworkMode>,
    /// What it may reach; nothing: the internet. `CIDR`, `ADDRESS`, `NAME` or `*.NAME`, each with or without `:PORT`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<NetworkRule>,
    /// What it may not reach, whatever is allowed; in the same words.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub deny: Vec<NetworkRule>,
    /// Ports of the host that lead to ports of the guest: `[ADDRESS:]PORT:PORT[/udp]`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub publish: Vec<PublishedPort>,
    /// How fast it may send, and receive.
    #[serde(default)]
    pub limits: NetworkLimits,
}

/// What a sandbox may reach, and which ports of the host lead to it. Given anew, they replace all that were there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRules {
    /// What it may reach; nothing: the internet. `CIDR`, `ADDRESS`, `NAME` or `*.NAME`, each with or without `:PORT`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<NetworkRule>,
    /// What it may not reach, whatever is allowed; in the same words.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub deny: Vec<NetworkRule>,
    /// Ports of the host that lead to ports of the guest: `[ADDRESS:]PORT:PORT[/udp]`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub publish: Vec<PublishedPort>,
}

impl NetworkRules {
    /// The same network under these rules.
    #[must_use]
    pub fn over(self, spec: &NetworkSpec) -> NetworkSpec {
        NetworkSpec {
            mode: spec.mode,
            allow: self.allow,
            deny: self.deny,
            publish: self.publish,
            limits: spec.limits,
        }
    }
}

/// The network of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// How it is connected.
    pub mode: NetworkMode,
    /// What it may reach; nothing: the internet.
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<NetworkRule>,
    /// What it may not reach, whatever is allowed.
    #[schema(value_type = Vec<String>)]
    pub deny: Vec<NetworkRule>,
    /// Ports of the host that lead to it while it runs.
    #[schema(value_type = Vec<String>)]
    pub publish: Vec<PublishedPort>,
    /// How fast it may send, and receive.
    pub limits: NetworkLimits,
    /// The address that the host knows it by; the guest's own is the same in every sandbox.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Packets of its guest that its rules stopped since its machine was started; none where that is not asked of the
    /// host (only `inspect` does), or no machine runs.
    #[serde(default)]
    pub denied_packets: Option<u64>,
    /// Packets, in both directions, that its rules dropped since they were more than its limit; none as above, or without a
    /// limit of packets.
    #[serde(default)]
    pub limited_packets: Option<u64>,
    /// What became of its guest's questions for names since its rules were set or the engine began; none as above, or
    /// where the host's name server answers them.
    #[serde(default)]
    pub names: Option<NameCounts>,
}

/// What became of a guest's questions for names, where the engine answers them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NameCounts {
    /// Questions that were understood.
    pub asked: u64,
    /// Of these, those that the rules refuse.
    pub refused: u64,
    /// Answers out of which addresses of closed networks were taken.
    pub rebinding: u64,
    /// Questions to which the host's name servers had no answer.
    pub failed: u64,
    /// Answers that were not given, since their addresses could not be opened.
    pub unopened: u64,
    /// Questions that were left unanswered, since too many were under way.
    pub dropped: u64,
}
