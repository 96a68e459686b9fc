//! Which monitor runs the sandboxes that ask for none.

use std::fmt::Display;

use async_trait::async_trait;
use cowslip_model::{DiskFormat, MonitorKind};
use cowslip_vmm::VmmError;

/// That monitor, and why it is that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usual {
    /// The monitor.
    pub kind: MonitorKind,
    /// Why.
    pub reason: String,
}

impl Usual {
    pub(super) fn new(kind: MonitorKind, reason: impl Display) -> Self {
        let reason = reason.to_string();
        Self { kind, reason }
    }
}

/// Whether guests boot on KVM, which opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnKvm {
    /// One was seen to.
    Boot,
    /// None does, or QEMU's accelerator is configured to be another.
    DoNot,
    /// It was not tried yet.
    Unknown,
    /// There is no QEMU to try it with, nor to be taken instead.
    Untried,
}

/// What a host is asked before one is chosen, the cheap questions first.
#[async_trait]
pub(super) trait Facts: Sync {
    /// Why KVM does not open; none: it does.
    fn lacks_kvm(&self) -> Option<String>;

    /// Why Firecracker cannot be used as it is to be; none: it can.
    async fn lacks_firecracker(&self) -> Option<String>;

    /// Whether guests boot on KVM.
    async fn on_kvm(&self) -> Result<OnKvm, VmmError>;
}

/// Firecracker, which users come for; QEMU where it cannot run. That `/dev/kvm` opens is not enough: some nested
/// hosts offer a KVM on which no guest boots, and Firecracker has nothing else.
pub(super) async fn choose(host: &dyn Facts, disks: DiskFormat) -> Result<Usual, VmmError> {
    let qemu = |reason: String| Ok(Usual::new(MonitorKind::Qemu, reason));
    if disks == DiskFormat::Qcow2 {
        return qemu("Firecracker reads no qcow2 disks".to_owned());
    }
    if let Some(why) = host.lacks_kvm() {
        return qemu(format!("Firecracker needs KVM: {why}"));
    }
    if let Some(why) = host.lacks_firecracker().await {
        return qemu(format!("no Firecracker can be used: {why}"));
    }
    let reason = match host.on_kvm().await? {
        OnKvm::DoNot => {
            return qemu("Firecracker needs KVM, and guests do not boot on it".to_owned());
        }
        OnKvm::Boot => "it is there, and guests boot on KVM",
        OnKvm::Unknown => "it is there; whether guests boot on KVM shows with the first sandbox",
        OnKvm::Untried => "it is there, and QEMU is not",
    };
    Ok(Usual::new(MonitorKind::Firecracker, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        kvm: bool,
        firecracker: bool,
        guests: OnKvm,
    }

    #[async_trait]
    impl Facts for Host {
        fn lacks_kvm(&self) -> Option<String> {
            (!self.kvm).then(|| "load the kvm module".to_owned())
        }

        async fn lacks_firecracker(&self) -> Option<String> {
            assert!(self.kvm, "asked though there is no KVM");
            (!self.firecracker).then(|| "it is not on the PATH".to_owned())
        }

        async fn on_kvm(&self) -> Result<OnKvm, VmmError> {
            assert!(self.firecracker, "a guest is tried for nothing");
            Ok(self.guests)
        }
    }

    const GOOD: Host = Host {
        kvm: true,
        firecracker: true,
        guests: OnKvm::Boot,
    };

    async fn chosen(host: Host, disks: DiskFormat) -> (MonitorKind, String) {
        let usual = choose(&host, disks).await.unwrap();
        (usual.kind, usual.reason)
    }

    #[tokio::test]
    async fn firecracker_is_taken_where_guests_boot_on_kvm() {
        for guests in [OnKvm::Boot, OnKvm::Unknown, OnKvm::Untried] {
            let host = Host { guests, ..GOOD };
            let (kind, reason) = chosen(host, DiskFormat::Snapshot).await;
            assert_eq!(kind, MonitorKind::Firecracker, "{reason}");
        }
        assert_eq!(
            chosen(GOOD, DiskFormat::Raw).await.0,
            MonitorKind::Firecracker
        );
    }

    #[tokio::test]
    async fn else_qemu_and_the_reason_names_what_is_missing() {
        let without = |kvm, firecracker, guests| Host {
            kvm,
            firecracker,
            guests,
        };
        let cases = [
            (GOOD, DiskFormat::Qcow2, "qcow2"),
            (
                without(false, false, OnKvm::Boot),
                DiskFormat::Raw,
                "module",
            ),
            (without(true, false, OnKvm::Boot), DiskFormat::Raw, "PATH"),
            (without(true, true, OnKvm::DoNot), DiskFormat::Raw, "boot"),
        ];
        for (host, disks, word) in cases {
            let (kind, reason) = chosen(host, disks).await;
            assert_eq!(kind, MonitorKind::Qemu, "{reason}");
            assert!(reason.contains(word), "{reason}");
        }
    }
}
