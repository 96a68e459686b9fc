//! The host loses its power while a checkpoint or a pause is published: what was published is whole,
//! what was not is gone, and templates are as they were.
//!
//! The real engine works on real disks; only its machines have neither processor nor memory
//! ([`machine`]). Every write to the disk under the state directory is logged ([`log`]), and afterwards
//! the disk is made again as each cut may have left it ([`disk`]), and a new engine opened on it.

mod disk;
mod log;
mod machine;
mod survival;

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cowslip_engine::config::NetworkChoice;
use cowslip_engine::images::Ext4Images;
use cowslip_engine::parts::{FixedMonitor, Parts};
use cowslip_engine::verbs::recover::Recovered;
use cowslip_engine::{Config, Engine};
use cowslip_host::{Directory, DirectorySpec, Layout, LinuxHost, Site};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{KernelRecord, Ledger, Owner, Synchronous, TemplateRecord};
use cowslip_model::{ByteSize, Durability, KernelId, Timestamp};
use cowslip_store::Backend;
use tokio::runtime::Runtime;

use self::disk::Place;
use self::machine::Machines;
use crate::bench::{BLOCK, DISK, TEMPLATE, TEMPLATE_BLOCKS, template_byte};
use crate::commands::only_in_the_test_vm;

/// What is drawn between two flushes, beside the writes in their order.
const DRAWN: u64 = 1;

/// One life of an engine. Dropping it takes every task with it.
struct Life {
    engine: Arc<Engine>,
    machines: Machines,
    runtime: Runtime,
}

impl Life {
    /// The engine of the host's boot `boot`, and what it recovered.
    fn begin(place: &Place, boot: &str) -> (Self, Recovered) {
        let runtime = Runtime::new().unwrap();
        let machines = Machines::default();
        let site = site(place, boot);
        let mut config = Config::default();
        config.paths.state = place.state();
        config.paths.run = place.run();
        // No boot of this machine's takes its networks away between two lives.
        config.network.mode = NetworkChoice::None;
        // The disk is small, and what there is of it enough.
        config.storage.low_water = ByteSize(0);
        let parts = Parts {
            config,
            site,
            volumes: cowslip_store::open(Backend::Dm, Durability::Published),
            monitors: Arc::new(FixedMonitor(Arc::new(machines.clone()))),
            guests: Arc::new(machines.clone()),
            images: Arc::new(Ext4Images {
                require_confinement: true,
            }),
            notes: Vec::new(),
            lock: None,
        };
        let (engine, recovered) = runtime.block_on(Engine::assemble(parts));
        let life = Self {
            engine,
            machines,
            runtime,
        };
        (life, recovered)
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The guest writes `byte` to some blocks of its disk, and does not sync.
    fn write(&self, blocks: impl Iterator<Item = u64>, byte: u8) {
        let disk = self.machines.disk();
        for block in blocks {
            let written = disk.write_all_at(&[byte; BLOCK as usize], block * BLOCK);
            written.unwrap();
        }
    }

    fn checkpoint(&self, name: &str) {
        let request = serde_json::json!({ "sandbox": "one", "name": name });
        let request = serde_json::from_value(request).unwrap();
        let _ = self.run(self.engine.create_checkpoint(request)).unwrap();
    }
}

fn site(place: &Place, boot: &str) -> Site {
    let layout = Layout::new(place.state(), place.run());
    let ledger = Ledger::open(layout.state(), boot, Injector::default()).unwrap();
    let host = LinuxHost::new(layout.clone(), ledger.instance()).unwrap();
    Site {
        ledger,
        host: Arc::new(host),
        layout,
    }
}

/// The template, as every cut must leave it.
fn template() -> Vec<u8> {
    (0..TEMPLATE_BLOCKS)
        .flat_map(|block| [template_byte(block); BLOCK as usize])
        .collect()
}

/// A state directory with a template and a kernel.
fn install(place: &Place) {
    fs::create_dir(place.state()).unwrap();
    let site = site(place, "setting up");
    let path = site.layout.template(TEMPLATE);
    let spec = DirectorySpec { path, mode: 0o700 };
    let owner = Owner::Template(TEMPLATE);
    let slot = site.ledger.reserve::<Directory>(owner, spec, &[]).unwrap();
    site.host.make_directory(slot).unwrap().settle();
    fs::write(site.layout.template_image(TEMPLATE), template()).unwrap();
    let template = TemplateRecord {
        id: TEMPLATE,
        names: vec!["t".parse().unwrap()],
        digest: "0".repeat(64),
        size: ByteSize(DISK),
        used: ByteSize(DISK),
        entries: 1,
        source: "directory".to_owned(),
        config: None,
        layers: None,
        stamp: site
            .host
            .head(&site.layout.template_image(TEMPLATE), 0)
            .unwrap()
            .map(|head| head.stamp),
        created_at: Timestamp(0),
    };
    let kernel = KernelRecord {
        id: KernelId::from_bits(1),
        name: "k".parse().unwrap(),
        release: "6.12.0".to_owned(),
        digest: "1".repeat(64),
        format: "bzImage".to_owned(),
        modules: 0,
        size: ByteSize(1),
        created_at: Timestamp(0),
    };
    site.ledger
        .write("set up", Synchronous::Full, |tx| {
            tx.put_template(&template)?;
            tx.put_kernel(&kernel)
        })
        .unwrap();
}

#[test]
fn what_a_power_cut_meets_was_published_whole_or_is_gone() {
    // covers R26 R27 R43 R47
    only_in_the_test_vm();
    let place = Place::new();
    let mounted = place.mounted();
    install(&place);
    drop(mounted);

    let recorded = place.recorded();
    let (life, recovered) = Life::begin(&place, "before");
    assert_eq!(recovered, Recovered::default());
    let request = serde_json::json!({ "template": "t", "name": "one" });
    let request = serde_json::from_value(request).unwrap();
    let _ = life.run(life.engine.create(request)).unwrap();
    recorded.mark("created");
    let _ = life.run(life.engine.start("one")).unwrap();
    for (byte, name) in [(1, "first"), (2, "second")] {
        life.write((u64::from(byte)..TEMPLATE_BLOCKS / 2).step_by(9), byte);
        life.checkpoint(name);
        recorded.mark(name);
    }
    life.write((3..TEMPLATE_BLOCKS / 2).step_by(7), 3);
    let _ = life.run(life.engine.pause("one")).unwrap();
    recorded.mark("paused");
    let stills = life.machines.stills();
    drop(life);
    drop(recorded);

    let log = place.log();
    let expected = survival::Expected::new(&log, &stills);
    let cuts = log.cuts(log.mark("created")..log.mark("paused") + 1, DRAWN);
    let (mut done, mut written, mut refused) = (0, 0, 0);
    for cut in &cuts {
        place.forget_run();
        let mounted = place.cut(&log, cut, &mut done);
        let whole = survival::check(&place, &expected, cut);
        written += u32::from(whole.is_some());
        refused += u32::from(whole == Some(false));
        drop(mounted);
    }
    println!(
        "{} cuts; {written} met a running disk, and {refused} left it none",
        cuts.len()
    );
}
