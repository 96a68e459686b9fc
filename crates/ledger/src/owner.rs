//! Who a handle belongs to. Unwinding works on one owner at a time.

use std::fmt;
use std::str::FromStr;

use cowslip_model::{CheckpointId, KernelId, LayerId, SandboxId, TemplateId};
use serde::{Deserialize, Serialize};

/// The object that a handle is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    /// A sandbox's own directory: console log, paused image. Lives as long as the sandbox.
    Sandbox(SandboxId),
    /// The machine of a sandbox: runtime directory, sockets, process. Lives as long as one run.
    Machine(SandboxId),
    /// A layer's file (and later its loop and dm devices). Shared by volumes and checkpoints.
    Layer(LayerId),
    /// A checkpoint's directory.
    Checkpoint(CheckpointId),
    /// A template's directory.
    Template(TemplateId),
    /// A guest kernel's directory.
    Kernel(KernelId),
    /// A network that is ready for whoever gets this slot.
    Slot(u32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(id) => write!(f, "sandbox:{id}"),
            Self::Machine(id) => write!(f, "machine:{id}"),
            Self::Layer(id) => write!(f, "layer:{id}"),
            Self::Checkpoint(id) => write!(f, "checkpoint:{id}"),
            Self::Template(id) => write!(f, "template:{id}"),
            Self::Kernel(id) => write!(f, "kernel:{id}"),
            Self::Slot(slot) => write!(f, "slot:{slot}"),
        }
    }
}

/// A text that names no owner.
#[derive(Debug, Clone, thiserror::Error)]
#[error("\"{0}\" names no owner of a handle")]
pub struct OwnerError(String);

impl FromStr for Owner {
    type Err = OwnerError;
    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let error = || OwnerError(text.to_owned());
        let (kind, id) = text.split_once(':').ok_or_else(error)?;
        match kind {
            "sandbox" => id.parse().map(Self::Sandbox).map_err(|_| error()),
            "machine" => id.parse().map(Self::Machine).map_err(|_| error()),
            "layer" => id.parse().map(Self::Layer).map_err(|_| error()),
            "checkpoint" => id.parse().map(Self::Checkpoint).map_err(|_| error()),
            "template" => id.parse().map(Self::Template).map_err(|_| error()),
            "kernel" => id.parse().map(Self::Kernel).map_err(|_| error()),
            "slot" => id.parse().map(Self::Slot).map_err(|_| error()),
            _ => Err(error()),
        }
    }
}

impl TryFrom<String> for Owner {
    type Error = OwnerError;
    fn try_from(text: String) -> Result<Self, OwnerError> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.to_string()
    }
}
