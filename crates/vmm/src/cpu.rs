//! The host's processor, which a guest on KVM uses as it is.

use std::sync::OnceLock;

use cowslip_model::HostCpu;

/// The present one; none where the kernel does not tell.
pub(crate) fn present() -> Option<HostCpu> {
    static FOUND: OnceLock<Option<HostCpu>> = OnceLock::new();
    let find = || HostCpu::parse(&std::fs::read_to_string("/proc/cpuinfo").ok()?);
    FOUND.get_or_init(find).clone()
}

/// Why a machine that was saved on `saved` cannot run here. What was not recorded is not held against it.
pub(crate) fn differs(saved: Option<&HostCpu>, present: Option<&HostCpu>) -> Option<String> {
    saved?.differs(present?)
}

/// Its name, for an error that names both sides.
pub(crate) fn name(cpu: Option<&HostCpu>) -> String {
    cpu.map_or_else(String::new, |cpu| format!(" on \"{}\"", cpu.name))
}
