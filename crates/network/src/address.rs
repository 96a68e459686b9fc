//! Slots: which two addresses of the range a sandbox has.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A sandbox's number among those that are connected at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The two ends of the link between a slot's namespace and the host: a network of two addresses (RFC 3021).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotAddresses {
    /// The host's end.
    pub host: Ipv4Addr,
    /// The sandbox's: what the host and its firewall know it by.
    pub sandbox: Ipv4Addr,
}

/// The addresses that slots get theirs from: two for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange(Ipv4Net);

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no range of addresses for sandboxes: {why}")]
pub struct RangeError {
    text: String,
    why: &'static str,
}

/// Length of the prefix of a slot's two addresses.
const PAIR: u8 = 31;

impl Default for AddressRange {
    /// 65,536 slots in a corner of 10.0.0.0/8.
    fn default() -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 200, 0, 0), 15))
    }
}

impl AddressRange {
    /// How many slots there are.
    #[must_use]
    pub fn slots(self) -> u32 {
        1 << (PAIR - self.0.prefix_len())
    }

    /// The addresses of a slot; none beyond the last one.
    #[must_use]
    pub fn addresses(self, slot: Slot) -> Option<SlotAddresses> {
        if slot.0 >= self.slots() {
            return None;
        }
        let host = u32::from(self.0.network()).checked_add(slot.0.checked_mul(2)?)?;
        Some(SlotAddresses {
            host: host.into(),
            sandbox: host.checked_add(1)?.into(),
        })
    }

    /// The whole range.
    #[must_use]
    pub const fn net(self) -> Ipv4Net {
        self.0
    }

    /// The lowest slot that is not taken; `taken` in any order.
    #[must_use]
    pub fn free(self, taken: impl IntoIterator<Item = Slot>) -> Option<Slot> {
        let mut taken: Vec<Slot> = taken.into_iter().collect();
        taken.sort_unstable();
        taken.dedup();
        let free = taken
            .iter()
            .zip(0..)
            .find(|(taken, index)| taken.0 != *index);
        let slot = match free {
            Some((_, index)) => index,
            None => u32::try_from(taken.len()).ok()?,
        };
        (slot < self.slots()).then_some(Slot(slot))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let refused = |why| RangeError {
            text: text.chars().take(40).collect(),
            why,
        };
        let net: Ipv4Net = text
            .parse()
            .map_err(|_| refused("write it as 10.200.0.0/15"))?;
        let why = match () {
            () if net.addr() != net.network() => "its address has bits beyond its length",
            () if !(8..=PAIR).contains(&net.prefix_len()) => "its length is to be from 8 to 31",
            () if net.contains(&crate::GUEST) || crate::guests().contains(&net.network()) => {
                "10.0.2.0/24 is what guests see around them"
            }
            () if net.network().is_loopback()
                || net.network().is_multicast()
                || net.network().octets()[0] == 0
                || net.network().octets()[0] >= 240 =>
            {
                "no host has such addresses"
            }
            () => return Ok(Self(net)),
        };
        Err(refused(why))
    }
}

impl TryFrom<String> for AddressRange {
    type Error = RangeError;

    fn try_from(text: String) -> Result<Self, RangeError> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> AddressRange {
        text.parse().unwrap()
    }

    // covers R64
    #[test]
    fn no_two_slots_share_an_address() {
        let range = AddressRange::default();
        assert_eq!(range.slots(), 65_536);
        let at = |slot| {
            let SlotAddresses { host, sandbox } = range.addresses(Slot(slot)).unwrap();
            (host.to_string(), sandbox.to_string())
        };
        for (slot, host, sandbox) in [
            (0, "10.200.0.0", "10.200.0.1"),
            (1, "10.200.0.2", "10.200.0.3"),
            (44, "10.200.0.88", "10.200.0.89"),
            (255, "10.200.1.254", "10.200.1.255"),
            (256, "10.200.2.0", "10.200.2.1"),
            (300, "10.200.2.88", "10.200.2.89"),
            (65_535, "10.201.255.254", "10.201.255.255"),
        ] {
            assert_eq!(at(slot), (host.to_owned(), sandbox.to_owned()));
        }
        assert_eq!(range.addresses(Slot(65_536)), None);
        assert_eq!(range.addresses(Slot(u32::MAX)), None);
        let all = (0..65_536).flat_map(|slot| {
            let pair = range.addresses(Slot(slot)).unwrap();
            [pair.host, pair.sandbox]
        });
        assert_eq!(all.collect::<HashSet<_>>().len(), 131_072);
    }

    #[test]
    fn a_small_range_ends() {
        let range = range("172.31.255.254/31");
        assert_eq!(range.slots(), 1);
        assert!(range.addresses(Slot(0)).is_some() && range.addresses(Slot(1)).is_none());
        assert_eq!(range.free([]), Some(Slot(0)));
        assert_eq!(range.free([Slot(0)]), None);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for (text, why) in [
            ("10.200.0.0", "write it as"),
            ("fd00::/64", "write it as"),
            ("10.200.0.1/15", "bits beyond"),
            ("10.200.0.0/32", "8 to 31"),
            ("0.0.0.0/0", "8 to 31"),
            ("10.0.0.0/8", "guests see"),
            ("10.0.2.128/25", "guests see"),
            ("127.0.0.0/8", "no host"),
            ("224.0.0.0/8", "no host"),
        ] {
            let error = text.parse::<AddressRange>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn the_free_slot_is_the_lowest(taken in prop::collection::vec(0u32..40, 0..40)) {
            let range = range("10.200.0.0/26");
            let set: HashSet<u32> = taken.iter().copied().collect();
            let lowest = (0..32).find(|slot| !set.contains(slot)).map(Slot);
            prop_assert_eq!(range.free(taken.into_iter().map(Slot)), lowest);
        }
    }
}
