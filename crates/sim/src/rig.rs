//! A world with a state directory, a template and a kernel: where a test begins.

use std::path::Path;
use std::sync::Arc;

use cowslip_engine::Config;
use cowslip_engine::parts::{FixedMonitor, Parts};
use cowslip_host::{Directory, DirectorySpec, HostError, Layout, Site};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{KernelRecord, Ledger, LedgerError, Owner, Synchronous, TemplateRecord};
use cowslip_model::{ByteSize, KernelId, NameError, TemplateId, Timestamp};
use cowslip_store::Backend;

use crate::guests::SimGuests;
use crate::host::SimHost;
use crate::images::SimImages;
use crate::vmm::SimVmm;
use crate::world::World;

/// The template that [`Rig::install`] makes.
pub const TEMPLATE: TemplateId = TemplateId::from_bits(0x7e);
/// Its name.
pub const TEMPLATE_NAME: &str = "debian";
/// Size of its image, in bytes.
pub const TEMPLATE_SIZE: u64 = 64 << 20;
/// The kernel that [`Rig::install`] makes.
pub const KERNEL: KernelId = KernelId::from_bits(0x6e);
/// Its name.
pub const KERNEL_NAME: &str = "plain";

/// A test's set-up failed.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// A real directory could not be made.
    #[error("make a directory for the ledger: {0}")]
    Directory(#[from] std::io::Error),
    /// The ledger did not open or write.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The simulated host refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A constant above is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// A world, and the real directory in which the ledger lies.
pub struct Rig {
    /// The world.
    pub world: World,
    /// Where everything lies; only the ledger's own files are real.
    pub layout: Layout,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// A world in which nothing was ever done.
    ///
    /// # Errors
    /// When there is no place for the ledger.
    pub fn new() -> Result<Self, RigError> {
        // In memory where there is such a place: a full commit waits for the disk.
        let memory = Path::new("/dev/shm");
        let dir = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir())?;
        let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
        std::fs::create_dir(layout.state())?;
        Ok(Self {
            world: World::new()?,
            layout,
            _dir: dir,
        })
    }

    /// Opens the ledger for a new engine whose every step goes through `faults`.
    ///
    /// # Errors
    /// When the ledger does not open.
    pub fn site(&self, faults: Injector) -> Result<Site, RigError> {
        let ledger = Ledger::open(self.layout.state(), &self.world.boot_id(), faults.clone())?;
        let host = SimHost::new(
            self.world.clone(),
            self.layout.clone(),
            ledger.instance(),
            faults,
        );
        Ok(Site {
            ledger,
            host: Arc::new(host),
            layout: self.layout.clone(),
        })
    }

    /// The parts of a new engine, all of them behind `faults`.
    ///
    /// # Errors
    /// When the ledger does not open.
    pub fn parts(&self, backend: Backend, faults: Injector) -> Result<Parts, RigError> {
        let mut config = Config::default();
        config.network.warm = 0;
        // Nobody of this machine.
        config.network.resolvers = vec![std::net::Ipv4Addr::new(192, 0, 2, 53).into()];
        self.layout.state().clone_into(&mut config.paths.state);
        self.layout.run().clone_into(&mut config.paths.run);
        Ok(Parts {
            config,
            site: self.site(faults.clone())?,
            volumes: cowslip_store::open(backend, cowslip_model::Durability::default()),
            monitors: Arc::new(FixedMonitor(Arc::new(SimVmm::new(
                self.world.clone(),
                faults.clone(),
            )))),
            images: Arc::new(SimImages::new(self.world.clone(), faults.clone())),
            guests: Arc::new(SimGuests::new(self.world.clone(), faults)),
            notes: Vec::new(),
            lock: None,
        })
    }

    /// Imports a template and a kernel, as `template import` and `kernel import` would have.
    ///
    /// # Errors
    /// When the ledger or the simulated host fails.
    pub fn install(&self, site: &Site) -> Result<(), RigError> {
        for (owner, path) in [
            (Owner::Template(TEMPLATE), self.layout.template(TEMPLATE)),
            (Owner::Kernel(KERNEL), self.layout.kernel(KERNEL)),
        ] {
            let spec = DirectorySpec { path, mode: 0o700 };
            let slot = site.ledger.reserve::<Directory>(owner, spec, &[])?;
            site.host.make_directory(slot)?.settle();
        }
        self.world.add_file(
            &self.layout.template_image(TEMPLATE),
            TEMPLATE_SIZE,
            &["template"],
        );
        for file in ["vmlinuz", "initramfs", "manifest.json"] {
            self.world
                .add_file(&self.layout.kernel(KERNEL).join(file), 1 << 20, &[]);
        }
        let template = TemplateRecord {
            id: TEMPLATE,
            names: vec![TEMPLATE_NAME.parse()?],
            digest: "0".repeat(64),
            size: ByteSize(TEMPLATE_SIZE),
            used: ByteSize(TEMPLATE_SIZE / 2),
            entries: 100,
            source: "directory".to_owned(),
            config: None,
            layers: None,
            stamp: site
                .host
                .head(&self.layout.template_image(TEMPLATE), 0)?
                .map(|head| head.stamp),
            created_at: Timestamp(0),
        };
        let kernel = KernelRecord {
            id: KERNEL,
            name: KERNEL_NAME.parse()?,
            release: "6.12.0".to_owned(),
            digest: "1".repeat(64),
            format: "bzImage".to_owned(),
            modules: 0,
            size: ByteSize(2 << 20),
            created_at: Timestamp(0),
        };
        site.ledger.write("set up", Synchronous::Normal, |tx| {
            tx.put_template(&template)?;
            tx.put_kernel(&kernel)
        })?;
        Ok(())
    }
}
