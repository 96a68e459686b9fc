//! Work on what comes from outside: it may touch nothing of the host but what it is given.

use cowslip_host::HostError;
use cowslip_host::confine::{self, Allowed};

use crate::error::EngineError;

/// Runs `work` where it may touch only what is allowed, and no network. Blocking.
///
/// # Errors
/// When this host cannot do that, and it is required; else it is only told of.
pub(crate) fn run<T: Send>(
    allowed: &Allowed,
    required: bool,
    work: impl FnOnce() -> T + Send,
) -> Result<T, EngineError> {
    match confine::is_possible() {
        Ok(()) => Ok(confine::confined(allowed, work)?),
        Err(error) if !required => {
            tracing::warn!(%error, "work on an image is not kept from the rest of the host");
            Ok(work())
        }
        Err(error @ HostError::Confine(_)) => Err(EngineError::Unsupported(format!(
            "{error}; images may be hostile: use a kernel with landlock, or allow work on them without it with \
             require_confinement = false in the configuration's [images]"
        ))),
        Err(other) => Err(other.into()),
    }
}
