//! What `host prepare` and `host undo` say.

use serde::Serialize;

use super::{Finding, PrepareError};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Attributes of the processors' caches in sysfs.
    CacheAttributes,
    /// Kernel modules.
    Modules,
    /// The kernel's limits.
    Limits,
}

impl Part {
    /// As it is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CacheAttributes => "cache-attributes",
            Self::Modules => "modules",
            Self::Limits => "limits",
        }
    }
}

/// How it stands with an object, or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is as it should be, and was before.
    Ready,
    /// It is not, and `host prepare` would make it so.
    Needed,
    /// It was made so now.
    Done,
    /// It is not as it should be, and `host prepare` cannot change that.
    Impossible,
    /// It is of no use on this host.
    Unneeded,
    /// It was tried without success.
    Failed,
    /// What was done was taken back.
    Undone,
    /// What was done was gone already.
    Gone,
    /// What was done is left as it is.
    Left,
}

impl Outcome {
    /// As it is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Needed => "needed",
            Self::Done => "done",
            Self::Impossible => "impossible",
            Self::Unneeded => "unneeded",
            Self::Failed => "failed",
            Self::Undone => "undone",
            Self::Gone => "gone",
            Self::Left => "left",
        }
    }
}

/// One object of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The step.
    pub part: Part,
    /// A cache (`cpu0/index2`), a module, a sysctl; the step's own name where all of it failed.
    pub object: String,
    /// How it stands.
    pub outcome: Outcome,
    /// What was found, in words.
    pub detail: String,
}

impl Line {
    pub(super) fn of<C>(part: Part, finding: Finding<C>, outcome: Outcome) -> Self {
        Self {
            part,
            object: finding.object,
            outcome,
            detail: finding.detail,
        }
    }

    pub(super) fn failed(part: Part, object: &str, error: &PrepareError) -> Self {
        Self {
            part,
            object: object.to_owned(),
            outcome: Outcome::Failed,
            detail: error.to_string(),
        }
    }
}
