//! A state directory, a ledger and a real QEMU, all gone when the test is over, however it ends.

pub(crate) mod guest;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cowslip_host::{Directory, DirectorySpec, Layout, LinuxHost, Site, process};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{HandleRow, Ledger, LedgerError, Owner, Resource};
use cowslip_model::{ByteSize, DiskChain, DiskFormat, DiskLayer, DiskLimits, SandboxId};
use cowslip_vmm::qemu::{Choice, QemuConfig, QemuVmm};
use cowslip_vmm::{
    AgentChannel, ByteStream, CancellationToken, Credentials, Machine, MachineConfig,
};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

pub(crate) use guest::Guest;

/// 64 MiB, in bytes.
pub(crate) const DISK_SIZE: u64 = 64 << 20;

pub(crate) struct Lab {
    pub(crate) site: Site,
    pub(crate) guest: Guest,
    pub(crate) vmm: QemuVmm,
    pub(crate) credentials: Option<Credentials>,
    dir: TempDir,
}

impl Lab {
    /// With the distribution's kernel; none, told loudly, where the test assets are not there.
    pub(crate) async fn new(choice: Choice) -> Option<Self> {
        Self::with(choice, guest::debian).await
    }

    pub(crate) async fn with(
        choice: Choice,
        guest: impl FnOnce(&Path) -> Option<Guest>,
    ) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("vmm").tempdir().unwrap();
        let guest = guest(dir.path())?;
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        std::fs::create_dir(&state).unwrap();
        std::fs::create_dir(&run).unwrap();
        let layout = Layout::new(state.clone(), run);
        let ledger = Ledger::open(&state, &process::boot_id(), Injector::default()).unwrap();
        let host = LinuxHost::new(layout.clone(), ledger.instance()).unwrap();
        let site = Site {
            ledger,
            host: Arc::new(host),
            layout,
        };
        let vmm = QemuVmm::detect(&QemuConfig {
            program: None,
            accelerator: choice,
            memory: dir.path().join("kvm.json"),
        })
        .await
        .unwrap();
        Some(Self {
            site,
            guest,
            vmm,
            credentials: None,
            dir,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration of a new machine, whose runtime directory is made, on `disk`.
    pub(crate) fn config(&self, disk: Option<DiskChain>) -> MachineConfig {
        let sandbox = SandboxId::random().unwrap();
        let spec = DirectorySpec {
            path: self.site.layout.machine(sandbox),
            mode: 0o700,
        };
        let slot = self
            .site
            .ledger
            .reserve::<Directory>(Owner::Machine(sandbox), spec, &[])
            .unwrap();
        self.site.host.make_directory(slot).unwrap().settle();
        MachineConfig {
            sandbox,
            cpus: 1,
            memory: ByteSize::mib(192),
            kernel: self.guest.kernel.clone(),
            initramfs: self.guest.initramfs.clone(),
            command_line: Vec::new(),
            disk,
            disk_limits: DiskLimits::default(),
            network: None,
            cpu_template: None,
            track_memory: false,
            work: self.dir().to_owned(),
            cgroups: Vec::new(),
            console_log: self.dir().join(format!("console-{sandbox}.log")),
            console_bound: ByteSize::mib(1),
            credentials: self.credentials.clone(),
            called_off: CancellationToken::new(),
        }
    }

    /// A raw image at the bottom of a chain.
    pub(crate) fn base(&self) -> DiskLayer {
        let path = self.dir().join("base.img");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(DISK_SIZE)
            .unwrap();
        private(&path);
        DiskLayer {
            path,
            format: DiskFormat::Raw,
        }
    }

    /// An empty overlay over `below`.
    pub(crate) fn overlay(&self, name: &str, below: &DiskLayer) -> DiskLayer {
        let path = self.dir().join(format!("{name}.qcow2"));
        let format = if below.format == DiskFormat::Raw {
            "raw"
        } else {
            "qcow2"
        };
        qemu_img(
            &["create", "-q", "-f", "qcow2", "-F", format, "-b"],
            &[&below.path, &path],
        );
        private(&path);
        DiskLayer {
            path,
            format: DiskFormat::Qcow2,
        }
    }

    pub(crate) fn rows(&self, sandbox: SandboxId) -> Vec<HandleRow> {
        self.site
            .ledger
            .read::<_, LedgerError>(|tx| tx.handles_of(Owner::Machine(sandbox)))
            .unwrap()
    }

    /// The pid of a machine's process.
    pub(crate) fn pid(&self, sandbox: SandboxId) -> u32 {
        let rows = self.rows(sandbox);
        let row = rows
            .iter()
            .find(|row| row.kind == process::Process::KIND)
            .expect("no process");
        row.identity::<process::Process>()
            .unwrap()
            .expect("no identity")
            .pid
    }

    /// Ends a machine as the engine does.
    pub(crate) fn unwind(&self, sandbox: SandboxId) {
        unwind(&self.site, self.rows(sandbox));
    }
}

fn unwind(site: &Site, rows: Vec<HandleRow>) {
    for row in rows.iter().rev() {
        site.host.release(row).unwrap();
        site.ledger.forget(row).unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let rows = self
            .site
            .ledger
            .read::<_, LedgerError>(|tx| tx.handles())
            .unwrap();
        unwind(&self.site, rows);
    }
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub(crate) fn qemu_img(arguments: &[&str], paths: &[&Path]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .args(paths)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A chain: base first, the written layer last.
pub(crate) fn chain(layers: &[&DiskLayer]) -> Option<DiskChain> {
    let (top, frozen) = layers.split_last().unwrap();
    Some(DiskChain {
        frozen: frozen.iter().map(|&layer| layer.clone()).collect(),
        top: (*top).clone(),
        size: DISK_SIZE,
        durability: cowslip_model::Durability::default(),
    })
}

/// The test guest's port.
pub(crate) struct Port(BufReader<Box<dyn ByteStream>>);

impl Port {
    /// Connects and waits until the guest answers on *this* connection: what it wrote to an earlier
    /// one may come first.
    pub(crate) async fn open(machine: &dyn Machine) -> Self {
        let AgentChannel::Serial(stream) = machine.agent().await.unwrap() else {
            panic!("QEMU gives a serial channel")
        };
        let mut port = Self(BufReader::new(stream));
        let token = format!("{:?}", SandboxId::random().unwrap()).replace(['(', ')'], "");
        port.send(&format!("echo {token}")).await;
        while port.receive().await != format!("echo {token}") {}
        port
    }

    async fn send(&mut self, line: &str) {
        self.0
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    }

    async fn receive(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.0.read_line(&mut line).await.unwrap() > 0,
            "the port closed"
        );
        line.trim_end().to_owned()
    }

    /// Asks and gives the answer.
    pub(crate) async fn ask(&mut self, line: &str) -> String {
        self.send(line).await;
        self.receive().await
    }

    /// Says something that has no answer.
    pub(crate) async fn tell(&mut self, line: &str) {
        self.send(line).await;
    }
}

/// Descriptors of a process that are open for writing on `path`.
pub(crate) fn writers(pid: u32, path: &Path) -> usize {
    let path = path.canonicalize().unwrap();
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_str().unwrap());
            let target: PathBuf = std::fs::read_link(entry.path()).ok()?;
            let text = std::fs::read_to_string(info).ok()?;
            let flags = text
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))?
                .trim();
            let mode = u32::from_str_radix(flags, 8).unwrap() & 3;
            (target == path && mode != 0).then_some(())
        })
        .count()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
