//! The simulated parts with the real ledger and the real volume backends, without an engine.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cowslip_host::{Directory, DirectorySpec, File, FileSpec, Process, ProcessSpec, Site, process};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Faults, LayerRecord, Owner, Synchronous, Verdict};
use cowslip_model::{ByteSize, DiskLayer, DiskLimits, LayerId, SandboxId, Timestamp};
use cowslip_store::{Backend, FreezeStyle, LiveDisk, StoreError, Volumes};
use cowslip_vmm::{CancellationToken, Machine, MachineConfig, Vmm, VmmError};

use crate::rig::{KERNEL, Rig, TEMPLATE, TEMPLATE_SIZE};
use crate::{Recorder, Script, SimVmm};

const ONE: SandboxId = SandboxId::from_bits(1);
const TWO: SandboxId = SandboxId::from_bits(2);

struct Bench {
    rig: Rig,
    site: Site,
    vmm: SimVmm,
    volumes: Arc<dyn Volumes>,
}

struct Disk<'a>(&'a Arc<dyn Machine>);

#[async_trait]
impl LiveDisk for Disk<'_> {
    fn sandbox(&self) -> SandboxId {
        ONE
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), StoreError> {
        let swap = |error: VmmError| StoreError::Swap {
            sandbox: ONE,
            message: error.to_string(),
        };
        self.0.change_disk(next).await.map_err(swap)
    }

    async fn disk_top(&self) -> Result<PathBuf, StoreError> {
        let swap = |error: VmmError| StoreError::Swap {
            sandbox: ONE,
            message: error.to_string(),
        };
        self.0.disk_top().await.map_err(swap)
    }
}

impl Bench {
    fn new(backend: Backend) -> Self {
        Self::with(backend, Injector::default())
    }

    fn with(backend: Backend, faults: Injector) -> Self {
        let rig = Rig::new().unwrap();
        rig.install(&rig.site(Injector::default()).unwrap())
            .unwrap();
        let site = rig.site(faults.clone()).unwrap();
        let vmm = SimVmm::new(rig.world.clone(), faults);
        Self {
            rig,
            site,
            vmm,
            volumes: cowslip_store::open(backend, cowslip_model::Durability::default()),
        }
    }

    fn directory(&self, owner: Owner, path: PathBuf) {
        let spec = DirectorySpec { path, mode: 0o700 };
        let slot = self
            .site
            .ledger
            .reserve::<Directory>(owner, spec, &[])
            .unwrap();
        self.site.host.make_directory(slot).unwrap().settle();
    }

    fn layer(&self, bits: u64, parent: Option<&LayerRecord>) -> LayerRecord {
        let record = LayerRecord {
            id: LayerId::from_bits(bits),
            template: TEMPLATE,
            parent: parent
                .filter(|_| self.volumes.freeze_style(self.volumes.format()) == FreezeStyle::NewTop)
                .map(|l| l.id),
            format: self.volumes.format(),
            size: ByteSize(TEMPLATE_SIZE),
            frozen: false,
            created_at: Timestamp(0),
        };
        self.site
            .ledger
            .write("put a layer", Synchronous::Normal, |tx| {
                tx.put_layer(&record)
            })
            .unwrap();
        record
    }

    async fn made(&self, bits: u64, parent: Option<&LayerRecord>) -> LayerRecord {
        let record = self.layer(bits, parent);
        self.volumes
            .make_layer(&self.site, &record, parent)
            .await
            .unwrap();
        record
    }

    async fn config(&self, sandbox: SandboxId, top: &LayerRecord) -> MachineConfig {
        self.directory(Owner::Sandbox(sandbox), self.rig.layout.sandbox(sandbox));
        self.directory(Owner::Machine(sandbox), self.rig.layout.machine(sandbox));
        let layers = self.site.ledger.read(|tx| tx.chain(top.id)).unwrap();
        let disk = self
            .volumes
            .activate(&self.site, sandbox, &layers)
            .await
            .unwrap();
        let kernel = self.rig.layout.kernel(KERNEL);
        MachineConfig {
            sandbox,
            cpus: 1,
            memory: ByteSize::mib(64),
            kernel: kernel.join("vmlinuz"),
            initramfs: kernel.join("initramfs"),
            command_line: Vec::new(),
            disk: Some(disk),
            disk_limits: DiskLimits::default(),
            network: None,
            cpu_template: None,
            track_memory: false,
            work: self.rig.layout.sandbox(sandbox),
            cgroups: Vec::new(),
            console_log: self.rig.layout.sandbox(sandbox).join("console.log"),
            console_bound: ByteSize::mib(1),
            credentials: None,
            called_off: CancellationToken::new(),
        }
    }

    async fn booted(&self, sandbox: SandboxId, bits: u64) -> (Arc<dyn Machine>, LayerRecord) {
        let top = self.made(bits, None).await;
        let config = self.config(sandbox, &top).await;
        (self.vmm.boot(&self.site, &config).await.unwrap(), top)
    }

    /// Freezes the disk and saves the memory; gives the frozen layer.
    async fn checkpoint(
        &self,
        machine: &Arc<dyn Machine>,
        top: &LayerRecord,
        bits: u64,
    ) -> LayerRecord {
        let new_top = self.volumes.freeze_style(self.volumes.format()) == FreezeStyle::NewTop;
        let other = if new_top {
            self.made(bits, Some(top)).await
        } else {
            self.layer(bits, None)
        };
        machine.pause().await.unwrap();
        self.volumes
            .freeze(&self.site, top, &other, &Disk(machine))
            .await
            .unwrap();
        machine.save(&self.image(), None).await.unwrap();
        machine.resume().await.unwrap();
        if new_top { top.clone() } else { other }
    }

    fn image(&self) -> PathBuf {
        self.rig.layout.state().join("scratch").join("image")
    }

    fn disk(&self, sandbox: SandboxId) -> Vec<String> {
        self.rig.world.guest(sandbox).unwrap().disk
    }

    fn violations(&self) -> Vec<String> {
        self.rig.world.check_guests();
        self.rig.world.violations()
    }
}

#[tokio::test]
async fn forks_share_the_past_and_not_the_future() {
    // covers R25, R26
    for backend in [Backend::Qcow2, Backend::Copy] {
        let bench = Bench::new(backend);
        let world = &bench.rig.world;
        let (machine, top) = bench.booted(ONE, 1).await;
        world.guest_write(ONE, "before").unwrap();
        world.guest_count(ONE).unwrap();
        let frozen = bench.checkpoint(&machine, &top, 2).await;
        world.guest_write(ONE, "source").unwrap();

        let fork_top = bench.made(3, Some(&frozen)).await;
        let config = bench.config(TWO, &fork_top).await;
        let fork = bench
            .vmm
            .restore(&bench.site, &config, &bench.image())
            .await
            .unwrap();
        assert!(
            world.guest_write(TWO, "too early").is_err(),
            "it stands still until it is let go"
        );
        fork.resume().await.unwrap();
        world.guest_write(TWO, "fork").unwrap();

        assert_eq!(bench.disk(ONE), ["template", "before", "source"]);
        assert_eq!(bench.disk(TWO), ["template", "before", "fork"]);
        assert_eq!(world.guest(TWO).unwrap().counter, 1);
        assert_eq!(bench.violations(), [""; 0], "{backend:?}");
    }
}

#[tokio::test]
async fn memory_on_the_disk_of_another_instant_is_a_violation() {
    // covers R26
    let bench = Bench::new(Backend::Qcow2);
    let (machine, top) = bench.booted(ONE, 1).await;
    bench.rig.world.guest_write(ONE, "before").unwrap();
    bench.checkpoint(&machine, &top, 2).await;
    let fresh = bench.made(3, None).await;
    let config = bench.config(TWO, &fresh).await;
    bench
        .vmm
        .restore(&bench.site, &config, &bench.image())
        .await
        .unwrap();
    assert!(
        bench.violations()[0].contains("R26"),
        "{:?}",
        bench.violations()
    );
}

#[tokio::test]
async fn one_disk_for_two_machines_is_a_violation() {
    // covers R25
    let bench = Bench::new(Backend::Qcow2);
    let (_machine, top) = bench.booted(ONE, 1).await;
    let config = bench.config(TWO, &top).await;
    bench.vmm.boot(&bench.site, &config).await.unwrap();
    assert!(
        bench.violations().iter().any(|what| what.contains("R25")),
        "{:?}",
        bench.violations()
    );
}

#[tokio::test]
async fn a_copy_of_a_disk_that_is_being_written_is_a_violation() {
    // covers R26
    let bench = Bench::new(Backend::Copy);
    let (machine, top) = bench.booted(ONE, 1).await;
    let other = bench.layer(2, None);
    bench
        .volumes
        .freeze(&bench.site, &top, &other, &Disk(&machine))
        .await
        .unwrap();
    assert!(bench.violations()[0].contains("R26"));
}

#[tokio::test]
async fn taking_the_ground_from_under_a_machine_is_a_violation() {
    // covers R13
    for owner in [
        Owner::Layer(LayerId::from_bits(1)),
        Owner::Template(TEMPLATE),
        Owner::Sandbox(ONE),
    ] {
        let bench = Bench::new(Backend::Qcow2);
        bench.booted(ONE, 1).await;
        for row in bench.site.ledger.read(|tx| tx.handles_of(owner)).unwrap() {
            bench.site.host.release(&row).unwrap();
        }
        assert!(
            bench.violations()[0].contains("R13"),
            "{owner}: {:?}",
            bench.violations()
        );
    }
    // The machine's own handles, but in the wrong order.
    let bench = Bench::new(Backend::Qcow2);
    bench.booted(ONE, 1).await;
    let rows = bench
        .site
        .ledger
        .read(|tx| tx.handles_of(Owner::Machine(ONE)))
        .unwrap();
    for row in &rows {
        bench.site.host.release(row).unwrap();
    }
    assert!(
        bench.violations()[0].contains("R13"),
        "{:?}",
        bench.violations()
    );
}

#[tokio::test]
async fn a_machine_released_in_reverse_leaves_nothing() {
    let bench = Bench::new(Backend::Qcow2);
    let top = bench.made(1, None).await;
    let before = bench.rig.world.snapshot();
    let config = bench.config(ONE, &top).await;
    let machine = bench.vmm.boot(&bench.site, &config).await.unwrap();
    let running = bench.rig.world.snapshot();
    assert_eq!(
        before.difference(&running).len(),
        5,
        "{:?}",
        before.difference(&running)
    );
    for owner in [Owner::Machine(ONE), Owner::Sandbox(ONE)] {
        let rows = bench.site.ledger.read(|tx| tx.handles_of(owner)).unwrap();
        for row in rows.iter().rev() {
            assert_eq!(bench.site.host.probe(row).unwrap(), Presence::Present);
            for _ in 0..2 {
                bench.site.host.release(row).unwrap();
            }
            assert_eq!(bench.site.host.probe(row).unwrap(), Presence::Absent);
        }
    }
    assert_eq!(machine.ended().await, None);
    assert!(matches!(machine.state().await, Err(VmmError::Ended { .. })));
    assert_eq!(before.difference(&bench.rig.world.snapshot()), [""; 0]);
    assert_eq!(bench.violations(), [""; 0]);
}

#[tokio::test]
async fn last_words_reach_those_who_wait() {
    let bench = Bench::new(Backend::Qcow2);
    let (machine, _) = bench.booted(ONE, 1).await;
    let waiting = tokio::spawn({
        let machine = Arc::clone(&machine);
        async move { machine.ended().await }
    });
    assert!(bench.rig.world.crash_machine(ONE, "out of memory"));
    assert_eq!(waiting.await.unwrap().as_deref(), Some("out of memory"));
    assert_eq!(machine.ended().await.as_deref(), Some("out of memory"));
    assert!(bench.rig.world.pids(ONE).is_empty());
}

#[tokio::test]
async fn a_machine_outlives_its_engine_and_is_found_again() {
    // covers R46
    let script = Arc::new(Script::at(usize::MAX, Verdict::Proceed));
    let faults = Injector::new(Arc::clone(&script) as Arc<dyn Faults>);
    let bench = Bench::with(Backend::Qcow2, faults);
    let (machine, _) = bench.booted(ONE, 1).await;
    bench.rig.world.guest_count(ONE).unwrap();
    script.kill();
    assert!(machine.pause().await.is_err(), "a dead engine does nothing");
    drop(machine);

    let site = bench.rig.site(Injector::default()).unwrap();
    let vmm = SimVmm::new(bench.rig.world.clone(), Injector::default());
    let top = site
        .ledger
        .read(|tx| tx.layer(LayerId::from_bits(1)))
        .unwrap()
        .unwrap();
    let mut config = MachineConfig {
        disk: None,
        ..minimal(&bench)
    };
    config.sandbox = ONE;
    let machine = vmm.attach(&site, &config).await.unwrap();
    assert_eq!(
        machine.disk_top().await.unwrap(),
        bench.volumes.path(&site, &top)
    );
    assert_eq!(bench.rig.world.guest(ONE).unwrap().counter, 1);
    config.sandbox = TWO;
    assert!(matches!(
        vmm.attach(&site, &config).await,
        Err(VmmError::Ended { .. })
    ));
}

fn minimal(bench: &Bench) -> MachineConfig {
    MachineConfig {
        sandbox: ONE,
        cpus: 1,
        memory: ByteSize::mib(64),
        kernel: bench.rig.layout.kernel(KERNEL).join("vmlinuz"),
        initramfs: bench.rig.layout.kernel(KERNEL).join("initramfs"),
        command_line: Vec::new(),
        disk: None,
        disk_limits: DiskLimits::default(),
        network: None,
        cpu_template: None,
        track_memory: false,
        work: PathBuf::from("/"),
        cgroups: Vec::new(),
        console_log: PathBuf::from("/console.log"),
        console_bound: ByteSize::mib(1),
        credentials: None,
        called_off: CancellationToken::new(),
    }
}

#[tokio::test]
async fn a_process_without_a_record_is_found_by_its_mark() {
    // covers R43
    let bench = Bench::new(Backend::Qcow2);
    bench.booted(ONE, 1).await;
    let rows = bench.site.ledger.read(|tx| tx.handles()).unwrap();
    assert_eq!(bench.site.host.strays(&rows).unwrap(), []);
    let without: Vec<_> = rows
        .into_iter()
        .filter(|row| row.kind != "process")
        .collect();
    let strays = bench.site.host.strays(&without).unwrap();
    let row = strays[0].row.clone().unwrap();
    assert_eq!((strays.len(), row.owner), (1, Owner::Machine(ONE)));
    bench.site.host.release(&row).unwrap();
    assert!(bench.rig.world.pids(ONE).is_empty());
    let strays = bench.site.host.strays(&[]).unwrap();
    assert!(
        strays.iter().any(|stray| stray.what.contains("layers/")),
        "{strays:?}"
    );
}

#[tokio::test]
async fn half_an_image_is_not_restored() {
    let script = Arc::new(Recorder::default());
    let bench = Bench::with(
        Backend::Qcow2,
        Injector::new(Arc::clone(&script) as Arc<dyn Faults>),
    );
    let (machine, top) = bench.booted(ONE, 1).await;
    bench.checkpoint(&machine, &top, 2).await;
    let steps = script.steps();
    for expected in [
        "reserve process for machine",
        "host: spawn",
        "record process",
        "monitor: boot",
        "monitor: change disk",
        "monitor: save",
    ] {
        assert!(
            steps.iter().any(|step| step == expected),
            "{expected} is not in {steps:?}"
        );
    }
    bench.rig.world.add_file(&bench.image(), 4096, &[]);
    let fresh = bench.made(3, Some(&top)).await;
    let config = bench.config(TWO, &fresh).await;
    let error = bench
        .vmm
        .restore(&bench.site, &config, &bench.image())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, VmmError::File { .. }), "{error}");
    // An image is never written twice.
    machine.pause().await.unwrap();
    assert!(matches!(
        machine.save(&bench.image(), None).await,
        Err(VmmError::File { .. })
    ));
    let other = SimVmm::new(bench.rig.world.clone(), Injector::default()).with_version("2");
    assert!(matches!(
        other.restores(&bench.vmm.info()),
        Err(VmmError::Incompatible { .. })
    ));
}

#[tokio::test]
async fn a_reboot_leaves_files_and_nothing_else() {
    let bench = Bench::new(Backend::Qcow2);
    let (_, top) = bench.booted(ONE, 1).await;
    let rows = bench
        .site
        .ledger
        .read(|tx| tx.handles_of(Owner::Machine(ONE)))
        .unwrap();
    let boot = bench.rig.world.boot_id();
    bench.rig.world.reboot(bench.rig.layout.run());
    assert_ne!(bench.rig.world.boot_id(), boot);
    assert!(
        bench
            .rig
            .world
            .exists(&bench.volumes.path(&bench.site, &top))
    );
    for row in rows {
        assert_eq!(
            bench.site.host.probe(&row).unwrap(),
            Presence::Absent,
            "{}",
            row.describe()
        );
    }
}

#[tokio::test]
async fn the_host_refuses_what_linux_refuses() {
    let bench = Bench::new(Backend::Qcow2);
    let layers = bench.rig.layout.state().join("layers");
    let owner = Owner::Layer(LayerId::from_bits(9));
    let make = |path: PathBuf| {
        let spec = DirectorySpec { path, mode: 0o700 };
        let slot = bench
            .site
            .ledger
            .reserve::<Directory>(owner, spec, &[])
            .unwrap();
        bench
            .site
            .host
            .make_directory(slot)
            .map(|held| held.settle())
    };
    make(layers.join("a")).unwrap();
    assert!(
        make(layers.join("a"))
            .unwrap_err()
            .to_string()
            .contains("exists")
    );
    assert!(
        make(layers.join("b").join("c"))
            .unwrap_err()
            .to_string()
            .contains("not found")
    );
    assert!(
        make("/etc/cowslip".into())
            .unwrap_err()
            .to_string()
            .contains("outside")
    );

    // What took the place of ours is left alone.
    let rows = bench.site.ledger.read(|tx| tx.handles_of(owner)).unwrap();
    let row = rows.iter().find(|row| row.identity.is_some()).unwrap();
    bench.rig.world.lose(&layers.join("a"));
    bench.rig.world.add_directory(&layers.join("a"));
    assert_eq!(bench.site.host.probe(row).unwrap(), Presence::Foreign);
    assert!(bench.site.host.release(row).is_err());
    let spec = FileSpec {
        path: layers.join("a"),
        mode: 0o600,
    };
    let slot = bench.site.ledger.reserve::<File>(owner, spec, &[]).unwrap();
    let id = slot.id();
    drop(slot);
    let row = bench.site.ledger.read(|tx| tx.handle(id)).unwrap().unwrap();
    assert_eq!(
        bench.site.host.probe(&row).unwrap(),
        Presence::Foreign,
        "a directory is no file"
    );
}

#[tokio::test]
async fn a_second_process_of_one_sandbox_is_a_violation() {
    let bench = Bench::new(Backend::Qcow2);
    bench.booted(ONE, 1).await;
    let spec = ProcessSpec::unjailed(process::mark(bench.site.ledger.instance(), ONE));
    let slot = bench
        .site
        .ledger
        .reserve::<Process>(Owner::Machine(ONE), spec.clone(), &[])
        .unwrap();
    let launch = cowslip_host::Launch {
        program: "monitor".into(),
        arguments: vec![spec.mark],
        environment: Vec::new(),
        inherit: Vec::new(),
        output: std::fs::File::open("/dev/null").unwrap().into(),
        credentials: None,
        view: None,
        cgroups: Vec::new(),
        netns: None,
    };
    bench.site.host.spawn(slot, launch).unwrap().settle();
    assert!(bench.violations()[0].contains("second process"));
}
