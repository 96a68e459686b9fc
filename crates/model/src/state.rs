//! The states of a sandbox and the transitions between them.
//!
//! ```text
//!  creating ──► running ◄──► paused
//!     │            ▲
//!     ▼            ▼
//!  stopped ◄──────►┘          any ──► failed (with a reason)      any ──► removed (no row)
//! ```
//!
//! A [`Transition`] is written to the ledger before anything is done and cleared with the new
//! state in one transaction, so a crash in the middle is resolved by recovery, never guessed (R38).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a sandbox stands between two verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Recorded, its volume not yet whole.
    Creating,
    /// It has a volume and no machine.
    Stopped,
    /// Its machine runs and its agent has answered.
    Running,
    /// Its memory is on disk; it has no machine.
    Paused,
    /// Something went wrong; the reason is kept, and `start`, `resume` or `rm` may be tried.
    Failed,
}

/// What is being done to a sandbox right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transition {
    /// A first volume is being made, or restored from a checkpoint.
    Creating,
    /// A machine is being booted.
    Starting,
    /// Memory and disk are being taken.
    Checkpointing,
    /// Memory is being written, then the machine ends.
    Pausing,
    /// A machine is being restored from the paused image.
    Resuming,
    /// The machine is being ended.
    Stopping,
    /// Everything is being released.
    Removing,
}

impl SandboxState {
    /// Whether the verb that `transition` stands for may begin from this state.
    #[must_use]
    pub const fn allows(self, transition: Transition) -> bool {
        match transition {
            Transition::Creating => matches!(self, Self::Creating),
            Transition::Starting => matches!(self, Self::Creating | Self::Stopped | Self::Failed),
            Transition::Checkpointing | Transition::Pausing => matches!(self, Self::Running),
            Transition::Resuming => matches!(self, Self::Paused),
            Transition::Stopping => matches!(self, Self::Running | Self::Paused | Self::Failed),
            Transition::Removing => true,
        }
    }

    /// The state as its lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Failed => "failed",
        }
    }
}

impl Transition {
    /// The transition as its lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Checkpointing => "checkpointing",
            Self::Pausing => "pausing",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Removing => "removing",
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
