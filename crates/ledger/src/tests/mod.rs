//! What the ledger's tests share: records with every field filled, and a kind of handle.

mod handles;
mod mirror;
mod open;
mod plan;
mod plan_property;
mod records;

use std::path::PathBuf;

use cowslip_model::{
    ByteSize, CheckpointId, DiskFormat, DiskLimits, Isolation, KernelId, LayerId, MonitorKind,
    Name, NetworkSpec, OnExpiry, Resources, SandboxId, SandboxSpec, SandboxState, TemplateId,
    Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::fault::Injector;
use crate::{
    CheckpointRecord, KernelRecord, LayerRecord, Ledger, LedgerError, MonitorInfo, Resource,
    SandboxRecord, Synchronous, TemplateRecord, Tx,
};

const TEMPLATE: TemplateId = TemplateId::from_bits(1);
const KERNEL: KernelId = KernelId::from_bits(2);

/// A kind of handle without a host.
#[derive(Debug)]
struct Thing;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ThingSpec {
    path: PathBuf,
}

impl ThingSpec {
    fn new(path: &str) -> Self {
        Self { path: path.into() }
    }
}

impl Resource for Thing {
    const KIND: &'static str = "thing";
    type Spec = ThingSpec;
    type Identity = u64;
}

fn monitor() -> MonitorInfo {
    MonitorInfo {
        kind: "qemu".to_owned(),
        version: "7.2".to_owned(),
        accelerator: "tcg".to_owned(),
        machine: "microvm".to_owned(),
        cpu: None,
    }
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        template: TEMPLATE,
        kernel: KERNEL,
        resources: Resources {
            cpus: 1,
            memory: ByteSize::mib(256),
            disk: ByteSize::mib(512),
        },
        vmm: MonitorKind::Firecracker,
        isolation: Isolation::Direct,
        cpu_template: None,
        disk_limits: DiskLimits::default(),
        network: NetworkSpec::none(),
        env: [("A".to_owned(), "b".to_owned())].into(),
        workdir: Some("/".to_owned()),
        user: None,
        ttl: None,
        on_expiry: OnExpiry::Pause,
    }
}

fn name(prefix: &str, bits: u64) -> Name {
    format!("{prefix}-{bits}").parse().unwrap()
}

fn template() -> TemplateRecord {
    TemplateRecord {
        id: TEMPLATE,
        names: vec!["bookworm".parse().unwrap(), "debian".parse().unwrap()],
        digest: "0".repeat(64),
        size: ByteSize::mib(512),
        used: ByteSize::mib(300),
        entries: 8000,
        source: "directory".to_owned(),
        config: None,
        layers: None,
        stamp: None,
        created_at: Timestamp(1),
    }
}

fn kernel() -> KernelRecord {
    KernelRecord {
        id: KERNEL,
        name: "cloud".parse().unwrap(),
        release: "6.1.0".to_owned(),
        digest: "1".repeat(64),
        format: "bzImage".to_owned(),
        modules: 20,
        size: ByteSize::mib(10),
        created_at: Timestamp(1),
    }
}

fn layer(bits: u64, parent: Option<u64>) -> LayerRecord {
    LayerRecord {
        id: LayerId::from_bits(bits),
        template: TEMPLATE,
        parent: parent.map(LayerId::from_bits),
        format: DiskFormat::Qcow2,
        size: ByteSize::mib(512),
        frozen: false,
        created_at: Timestamp(1),
    }
}

fn sandbox(bits: u64, top: Option<u64>) -> SandboxRecord {
    SandboxRecord {
        id: SandboxId::from_bits(bits),
        name: name("box", bits),
        spec: spec(),
        state: SandboxState::Stopped,
        transition: None,
        reason: None,
        layer: top.map(LayerId::from_bits),
        next_layer: None,
        generation: 1,
        forked_from: None,
        paused_image: false,
        monitor: Some(monitor()),
        memory_base: Some(1),
        main: None,
        auto_remove: false,
        slot: 0,
        network_pending: false,
        created_at: Timestamp(bits),
        disk_fallback: None,
        phases: Vec::new(),
        started_at: None,
        expires_at: None,
    }
}

fn checkpoint(bits: u64, layer: u64) -> CheckpointRecord {
    CheckpointRecord {
        id: CheckpointId::from_bits(bits),
        name: name("point", bits),
        sandbox: SandboxId::from_bits(1),
        sandbox_name: name("box", 1),
        spec: spec(),
        main: None,
        layer: LayerId::from_bits(layer),
        generation: 1,
        monitor: monitor(),
        template_digest: Some("d".repeat(64)),
        kernel_digest: None,
        memory_chain: 1,
        whole_since: None,
        disk_only: false,
        memory_bytes: ByteSize::mib(64),
        downtime_us: 1,
        publication_us: 2,
        ready: true,
        created_at: Timestamp(bits),
    }
}

/// A ledger with a template and a kernel.
struct Bench {
    dir: tempfile::TempDir,
    ledger: Ledger,
}

impl Bench {
    fn new() -> Self {
        Self::with(Injector::default())
    }

    fn with(faults: Injector) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let installed = Ledger::open(dir.path(), "boot-1", Injector::default()).unwrap();
        installed
            .write("set up", Synchronous::Normal, |tx| {
                tx.put_template(&template())?;
                tx.put_kernel(&kernel())
            })
            .unwrap();
        drop(installed);
        let ledger = Ledger::open(dir.path(), "boot-1", faults).unwrap();
        Self { dir, ledger }
    }

    /// The same ledger, as the next engine finds it.
    fn reopened(&self, boot_id: &str) -> Ledger {
        Ledger::open(self.dir.path(), boot_id, Injector::default()).unwrap()
    }

    fn write(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        self.ledger.write("test", Synchronous::Normal, work)
    }
}
