//! Images of simulated disks: their digest is made of what was written to them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use cowslip_engine::EngineError;
use cowslip_engine::images::{Images, Sealed};
use cowslip_host::HostError;
use cowslip_ledger::LedgerError;
use cowslip_ledger::fault::Injector;
use cowslip_model::Name;

use crate::world::World;

/// What makes images of disks in a [`World`].
#[derive(Clone)]
pub struct SimImages {
    world: World,
    faults: Injector,
}

impl SimImages {
    /// With this injector.
    #[must_use]
    pub fn new(world: World, faults: Injector) -> Self {
        Self { world, faults }
    }
}

impl Images for SimImages {
    fn seal(&self, path: &Path, _name: &Name) -> Result<Sealed, EngineError> {
        let looked = self.faults.around("image: seal", || {
            let inner = self.world.lock();
            inner
                .file(path)
                .map(|file| (file.writes.clone(), file.length))
        });
        let (writes, size) = looked
            .map_err(LedgerError::from)?
            .map_err(HostError::path("look at", path))?;
        let mut hasher = DefaultHasher::new();
        writes.hash(&mut hasher);
        let digest = format!("{:016x}", hasher.finish()).repeat(4);
        Ok(Sealed {
            digest: digest
                .parse()
                .map_err(|error| EngineError::Internal(format!("{digest}: {error}")))?,
            size,
            used: size / 2,
            entries: writes.len() as u64,
        })
    }
}
