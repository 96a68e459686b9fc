//! Devices with limits, as requests say them.

use cowslip_model::{DiskLimits, NetworkLimits};

use super::api::{NetworkDevice, RateLimiter, TokenBucket};
use crate::{NetworkInterface, NetworkTo, VmmError};

const NETWORK: &str = "eth0";

/// The guest's interface. What else there is than taps Firecracker has not.
pub(super) fn network_device(network: &NetworkInterface) -> Result<NetworkDevice, VmmError> {
    let NetworkTo::Namespace(netns) = &network.to else {
        return Err(VmmError::Unusable {
            program: "Firecracker".to_owned(),
            why: "it has no user-mode network: take --network nat or none, or --vmm qemu"
                .to_owned(),
        });
    };
    let NetworkLimits { bandwidth, packets } = network.limits;
    let limiter = (!network.limits.is_none()).then(|| RateLimiter {
        bandwidth: bandwidth.map(|bytes| TokenBucket::per_second(bytes.bytes())),
        ops: packets.map(TokenBucket::per_second),
    });
    Ok(NetworkDevice {
        iface_id: NETWORK.to_owned(),
        host_dev_name: netns.tap.name.clone(),
        guest_mac: network.mac_text(),
        rx_rate_limiter: limiter,
        tx_rate_limiter: limiter,
    })
}

/// How fast a disk may be used.
pub(super) fn rate_limiter(limits: &DiskLimits) -> Option<RateLimiter> {
    (!limits.is_none()).then(|| RateLimiter {
        bandwidth: limits
            .bandwidth
            .map(|bytes| TokenBucket::per_second(bytes.bytes())),
        ops: limits.operations.map(TokenBucket::per_second),
    })
}
