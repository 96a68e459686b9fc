//! Finding the monitor.
use crate::config::Config;
use crate::parts::Monitors;
use async_trait::async_trait;
use cowslip_ledger::MonitorInfo;
use cowslip_vmm::{Vmm, VmmError};
use std::path::Path;
use std::sync::Arc;
pub(crate) struct QemuMonitors;
impl QemuMonitors {
    pub(crate) fn new(_: &Config) -> Self {
        Self
    }
}
fn no() -> VmmError {
    VmmError::Unusable {
        program: "qemu".into(),
        why: "not yet".into(),
    }
}
#[async_trait]
impl Monitors for QemuMonitors {
    async fn for_boot(&self, _: &Path, _: &Path) -> Result<Arc<dyn Vmm>, VmmError> {
        Err(no())
    }
    async fn for_running(&self, _: Option<&MonitorInfo>) -> Result<Arc<dyn Vmm>, VmmError> {
        Err(no())
    }
    fn describe(&self) -> (Option<String>, String) {
        (None, String::new())
    }
}
