//! The table of modules that a guest uses.

use super::Stage::{self, Boot, Later};

pub(super) struct Wanted {
    /// The module's name, with underscores.
    pub(super) name: &'static str,
    pub(super) stage: Stage,
}

const fn at(stage: Stage, name: &'static str) -> Wanted {
    Wanted { name, stage }
}

/// Drivers without which there is no sandbox: a bus, a disk, its file system, the agent's port.
/// One of each line is enough.
pub(super) const REQUIRED: &[&[&str]] = &[
    &["virtio_pci", "virtio_mmio"],
    &["virtio_blk"],
    &["ext4"],
    &["virtio_console"],
];

/// All that is taken, where the kernel has it as a module. Dependencies come along by themselves.
pub(super) const WANTED: &[Wanted] = &[
    at(Boot, "virtio_pci"),
    at(Boot, "virtio_mmio"),
    at(Boot, "virtio_blk"),
    // ext4 asks for this checksum by an alias, which only a modprobe in the guest could resolve.
    at(Boot, "crc32c_generic"),
    at(Boot, "ext4"),
    at(Boot, "virtio_console"),
    // The agent's way where there is no port: in Firecracker.
    at(Boot, "vmw_vsock_virtio_transport"),
    // A guest without entropy blocks its first process that asks for random bytes.
    at(Boot, "virtio_rng"),
    // Told of a restore by the monitor: early, so that no fork misses it.
    at(Later, "vmgenid"),
    at(Later, "ptp_kvm"),
    // IPv6 before the interface, on which the agent turns it off.
    at(Later, "ipv6"),
    at(Later, "virtio_net"),
    at(Later, "af_packet"),
    // Ends connections whose other end a restore has left behind.
    at(Later, "tcp_diag"),
    at(Later, "virtio_balloon"),
    // What programs in the guest expect to find; nothing there can load it afterwards, since the
    // root file system is anyone's and has no modules of this kernel.
    at(Later, "fuse"),
    at(Later, "virtiofs"),
    at(Later, "overlay"),
    at(Later, "squashfs"),
    at(Later, "loop"),
    at(Later, "binfmt_misc"),
    at(Later, "tun"),
    at(Later, "veth"),
    at(Later, "dummy"),
    at(Later, "bridge"),
    at(Later, "br_netfilter"),
    // Containers inside: docker, podman and kubernetes' proxies, by nftables or by iptables.
    at(Later, "nf_tables"),
    at(Later, "nf_conntrack_netlink"),
    at(Later, "nft_chain_nat"),
    at(Later, "nft_compat"),
    at(Later, "nft_ct"),
    at(Later, "nft_fib_inet"),
    at(Later, "nft_limit"),
    at(Later, "nft_log"),
    at(Later, "nft_masq"),
    at(Later, "nft_nat"),
    at(Later, "nft_redir"),
    at(Later, "nft_reject_inet"),
    at(Later, "ip_tables"),
    at(Later, "iptable_filter"),
    at(Later, "iptable_nat"),
    at(Later, "iptable_mangle"),
    at(Later, "ip6_tables"),
    at(Later, "ip6table_filter"),
    at(Later, "ip6table_nat"),
    at(Later, "ipt_REJECT"),
    at(Later, "ip6t_REJECT"),
    at(Later, "xt_addrtype"),
    at(Later, "xt_comment"),
    at(Later, "xt_conntrack"),
    at(Later, "xt_mark"),
    at(Later, "xt_MASQUERADE"),
    at(Later, "xt_multiport"),
    at(Later, "xt_nat"),
    at(Later, "xt_tcpudp"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_module_once_and_as_the_kernel_does() {
        let mut names: Vec<_> = WANTED.iter().map(|wanted| wanted.name).collect();
        assert!(names.iter().all(|name| !name.contains(['-', '/', '.'])));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn what_is_required_is_loaded_at_boot() {
        for name in REQUIRED.iter().copied().flatten() {
            let wanted = WANTED.iter().find(|wanted| wanted.name == *name);
            assert!(wanted.is_some_and(|wanted| wanted.stage == Boot), "{name}");
        }
    }
}
