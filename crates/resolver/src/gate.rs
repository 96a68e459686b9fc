//! What opens addresses to a guest.

use std::net::Ipv4Addr;
use std::time::Duration;

use async_trait::async_trait;

/// An address that a name led to, for the set of the rule that allows the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Index of the rule in `allow` of the spec that the [`Policy`](crate::Policy) was made of.
    pub rule: usize,
    /// The address.
    pub address: Ipv4Addr,
    /// How long it is to be open from now on, at least; it was shown to the guest for less.
    pub ttl: Duration,
}

/// Why addresses could not be opened; told to the log, and to the guest as SERVFAIL.
pub type GateError = Box<dyn std::error::Error + Send + Sync>;

/// Opens addresses to one sandbox's guest.
///
/// Rules are known by their index. Whoever replaces a sandbox's rules has the gate of the old ones open nothing more, and
/// empties the sets then: a gate that fails keeps back the answer.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Opens all of them, or fails. An address that is open already stays so for the longer of both times.
    async fn open(&self, openings: &[Opening]) -> Result<(), GateError>;
}
