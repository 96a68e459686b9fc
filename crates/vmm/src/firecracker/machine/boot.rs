//! A machine's devices, and its start.

use cowslip_model::{CpuTemplate, Durability};

use super::super::api::{
    ApiError, Balloon, BootSource, CacheType, Drive, Entropy, MachineConfiguration, NetworkDevice,
    Vsock,
};
use super::super::devices::{network_device, rate_limiter};
use super::super::paths::seen;
use super::FirecrackerMachine;
use crate::{MachineConfig, VmmError};

/// The guest's vsock address; the least there is, since no two machines share a socket.
const GUEST_CID: u32 = 3;
const DISK: &str = "root";
/// Words of every guest's command line: speak on the serial console, and let a panic or a power-off end
/// the machine, for which it has only the reset of the keyboard controller (`reboot=k`).
const COMMAND_LINE: &[&str] = &[
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "reboot=k",
    "cowslip.off=reset",
    "8250.nr_uarts=1",
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
];

impl FirecrackerMachine {
    /// Makes the machine and lets it boot.
    pub(in crate::firecracker) async fn boot(
        &self,
        config: &MachineConfig,
    ) -> Result<(), VmmError> {
        const OPERATION: &str = "boot";
        if self.exchange.is_none() {
            for path in [&config.kernel, &config.initramfs] {
                self.require_seen(OPERATION, path)?;
            }
        }
        let network = config.network.as_ref().map(network_device).transpose()?;
        match self.configure(config, network.as_ref()).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(OPERATION, error).await),
        }
    }

    async fn configure(
        &self,
        config: &MachineConfig,
        network: Option<&NetworkDevice>,
    ) -> Result<(), ApiError> {
        let machine = MachineConfiguration {
            vcpu_count: config.cpus,
            mem_size_mib: config.memory.bytes() >> 20,
            track_dirty_pages: config.track_memory,
            cpu_template: match &config.cpu_template {
                Some(CpuTemplate::Named(named)) => Some(*named),
                Some(CpuTemplate::Custom(_)) | None => None,
            },
        };
        self.api.machine(&machine).await?;
        if let Some(CpuTemplate::Custom(template)) = &config.cpu_template {
            self.api.cpu(template).await?;
        }
        let (kernel, initramfs) = match &self.exchange {
            Some(_) => (seen::kernel(), seen::initramfs()),
            None => (config.kernel.clone(), config.initramfs.clone()),
        };
        let source = BootSource {
            kernel_image_path: kernel,
            initrd_path: Some(initramfs),
            boot_args: command_line(&config.command_line),
        };
        self.api.boot_source(&source).await?;
        if let Some((_, durability)) = &self.disk {
            let drive = Drive {
                drive_id: DISK.to_owned(),
                path_on_host: seen::disk(),
                is_root_device: false,
                is_read_only: false,
                cache_type: match durability {
                    Durability::Published => CacheType::Unsafe,
                    Durability::Flush => CacheType::Writeback,
                },
                rate_limiter: rate_limiter(&config.disk_limits),
            };
            self.api.drive(&drive).await?;
        }
        if let Some(network) = network {
            self.api.network(network).await?;
        }
        let vsock = Vsock {
            guest_cid: GUEST_CID,
            uds_path: seen::vsock(),
        };
        self.api.vsock(&vsock).await?;
        self.api.entropy(&Entropy {}).await?;
        let balloon = Balloon {
            amount_mib: 0,
            deflate_on_oom: true,
            free_page_reporting: false,
        };
        self.api.balloon(&balloon).await?;
        self.api.start().await
    }
}

/// The guest kernel's command line; later words win, so the caller's come last.
///
/// Firecracker adds its devices behind them, which the kernel finds by ACPI as well. Finding each twice costs
/// it time and lines on the serial console: what stands behind `--` it leaves to its first process.
fn command_line(words: &[String]) -> String {
    let own = COMMAND_LINE.iter().copied();
    own.chain(words.iter().map(String::as_str))
        .chain(["--"])
        .collect::<Vec<_>>()
        .join(" ")
}
