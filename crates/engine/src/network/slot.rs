//! The network of a slot: what its parts are called, and their addresses.

use cowslip_host::process::mark_prefix;
use cowslip_host::{Layout, NetnsSpec, TapSpec};
use cowslip_model::InstanceId;
use cowslip_network::{
    AddressRange, GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, HostRules, PREFIX, RESOLVER, Slot,
    SlotAddresses, TAP, UPLINK,
};

/// The network of a slot of an engine; none: the range has no addresses for it. `owner`: the user and the group that may
/// open its tap, beside root.
#[must_use]
pub fn netns_spec(
    layout: &Layout,
    instance: InstanceId,
    range: AddressRange,
    slot: u32,
    owner: Option<(u32, u32)>,
) -> Option<NetnsSpec> {
    let SlotAddresses { host, sandbox } = range.addresses(Slot(slot))?;
    Some(NetnsSpec {
        path: layout.networks().join(slot.to_string()),
        link: format!("{}{slot:x}", HostRules::link_prefix(instance)),
        mark: format!("{}slot-{slot}", mark_prefix(instance)),
        host,
        sandbox,
        uplink: UPLINK.to_owned(),
        tap: TapSpec {
            name: TAP.to_owned(),
            addresses: vec![GATEWAY, RESOLVER],
            prefix: PREFIX,
            mac: GATEWAY_MAC,
            guest: GUEST,
            guest_mac: GUEST_MAC,
            owner,
        },
    })
}
