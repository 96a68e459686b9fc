//! KVM's device, as this user finds it. That it opens does not prove that a guest runs on it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Where it is.
pub const DEVICE: &str = "/dev/kvm";

/// What became of opening it.
#[derive(Debug)]
pub enum Kvm {
    /// It opens.
    Opens,
    /// It is there and this user may not use it, or the kernel refuses.
    Closed(io::Error),
    /// There is none.
    Absent,
}

impl Kvm {
    /// Opens it, and closes it again.
    #[must_use]
    pub fn look() -> Self {
        match OpenOptions::new().read(true).write(true).open(DEVICE) {
            Ok(_) => Self::Opens,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Absent,
            Err(error) => Self::Closed(error),
        }
    }

    /// Why it cannot be used, and the next step; none: it can.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        match self {
            Self::Opens => None,
            Self::Absent => Some(format!("\"{DEVICE}\" is not there: load the kvm module")),
            Self::Closed(error) => Some(format!(
                "\"{DEVICE}\" cannot be opened ({error}): give this user the device's group"
            )),
        }
    }

    /// Whether it opens.
    #[must_use]
    pub fn opens(&self) -> bool {
        matches!(self, Self::Opens)
    }
}

/// The group whose members may open it, where that is not root's.
#[must_use]
pub fn group() -> Option<u32> {
    let found = std::fs::metadata(DEVICE).ok()?;
    Some(found.gid()).filter(|gid| *gid != 0)
}
