//! Disks that guests wrote, made images.

use std::path::Path;

use cowslip_host::confine::Allowed;
pub use cowslip_image::Sealed;
use cowslip_model::Name;

use crate::confinement;
use crate::error::EngineError;

/// What makes an image of a disk: the real one works on ext4, a simulated one on what its world knows.
pub trait Images: Send + Sync + 'static {
    /// Brings the file system at `path` to rest, checks and syncs it, and tells what it is. `name` is
    /// the template that it is to be.
    ///
    /// # Errors
    /// When it is none that may become a template.
    fn seal(&self, path: &Path, name: &Name) -> Result<Sealed, EngineError>;
}

/// File systems of the guests' kernels: ext4. What looks at them may touch nothing else.
#[derive(Debug)]
pub struct Ext4Images {
    /// Whether they are refused where that cannot be had.
    pub require_confinement: bool,
}

impl Images for Ext4Images {
    fn seal(&self, path: &Path, name: &Name) -> Result<Sealed, EngineError> {
        let allowed = Allowed {
            read: Vec::new(),
            write: path.parent().map(Path::to_owned).into_iter().collect(),
        };
        let as_root = cowslip_host::process::is_root();
        let seal = || cowslip_image::seal_image(path, as_root);
        confinement::run(&allowed, self.require_confinement, seal)?.map_err(|source| {
            EngineError::Flatten {
                name: name.clone(),
                source,
            }
        })
    }
}
