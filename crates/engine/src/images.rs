//! Disks that guests wrote, made images.

use std::path::Path;

pub use cowslip_image::Sealed;
use cowslip_model::Name;

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

/// File systems of the guests' kernels: ext4.
#[derive(Debug, Default)]
pub struct Ext4Images;

impl Images for Ext4Images {
    fn seal(&self, path: &Path, name: &Name) -> Result<Sealed, EngineError> {
        cowslip_image::seal_image(path, cowslip_host::process::is_root()).map_err(|source| {
            EngineError::Flatten {
                name: name.clone(),
                source,
            }
        })
    }
}
