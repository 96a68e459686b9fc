//! What the network of a sandbox is made of, worked out: addresses and rules. Nothing here does I/O; the host makes
//! what is said here.
//!
//! ```text
//!  guest                 namespace of the sandbox                          host
//!  10.0.2.15 ──── tap ── 10.0.2.2  uplink: the slot's address ──── veth ── the slot's other address ── the internet
//!                        outward: what the policy opens                    forward: never from sandbox to sandbox
//!                        its source becomes the slot's address             input: nothing, but answers
//!                        inward: published ports, answers                  its source becomes the host's address
//! ```
//!
//! Every guest has the same address, the same neighbours and the same hardware addresses, so that what is restored, forked
//! or moved to another monitor finds the network that it left. They are those of QEMU's user-mode network, which
//! sandboxes have where the engine is not root.

mod address;
mod inside;
mod rules;

pub use address::{AddressRange, RangeError, Slot, SlotAddresses};
pub use inside::{DENIED, Inside, LIMITED, LOG_GROUP, TABLE, set_name};
pub use rules::HostRules;

use std::net::Ipv4Addr;

/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway that it sees: the tap in its namespace.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Whom it asks for names.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Length of the prefix of its network.
pub const PREFIX: u8 = 24;
/// The guest's hardware address: locally administered.
pub const GUEST_MAC: [u8; 6] = [0x02, 0xc0, 0x57, 0x00, 0x00, 0x0f];
/// The tap's.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0xc0, 0x57, 0x00, 0x00, 0x02];
/// The tap's name in its namespace.
pub const TAP: &str = "tap";
/// The name of the namespace's way out.
pub const UPLINK: &str = "uplink";
/// What the names of the host's ends of the links of all engines begin with.
pub const LINKS: &str = "cow";

/// The network that every guest sees around itself.
fn guests() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(GUEST, PREFIX).trunc()
}
