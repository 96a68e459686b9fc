//! The types of the HTTP API, which are also what `--json` prints: one documented, stable schema.
//!
//! Fields are only ever added. Times are milliseconds since the Unix epoch, sizes are bytes, spans
//! are seconds unless the name says otherwise. Requests refuse unknown fields.

mod build;
mod network;
mod sandbox;
mod session;
mod template;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::size::ByteSize;
use crate::time::Timestamp;

pub use self::build::*;
pub use self::network::*;
pub use self::sandbox::*;
pub use self::session::*;
pub use self::template::*;

/// Exit codes of the command line, as docker has them.
pub mod exit {
    /// Our own time-out ended the command.
    pub const TIMED_OUT: u8 = 124;
    /// The engine failed.
    pub const ENGINE: u8 = 125;
    /// The command cannot be invoked.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command was not found.
    pub const NOT_FOUND: u8 = 127;
    /// Added to the number of the signal that ended the command.
    pub const SIGNAL_BASE: u8 = 128;
}

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A value in the request is not acceptable.
    Invalid,
    /// There is no such object.
    NotFound,
    /// The object's state, or another object, forbids it.
    Conflict,
    /// The name is taken.
    Exists,
    /// The command is not in the guest.
    CommandNotFound,
    /// The command is there and cannot be run.
    CommandNotExecutable,
    /// A bound was reached: time.
    TimedOut,
    /// The disk is full, or memory is short.
    NoSpace,
    /// This host cannot do it.
    Unsupported,
    /// The caller may not.
    Forbidden,
    /// Anything else.
    Internal,
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// One line: the operation, the object, what is wrong.
    pub message: String,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// What: `sandbox.started`, `checkpoint.created`, …
    pub kind: String,
    /// The object's id.
    pub id: String,
    /// The object's name.
    pub name: Option<String>,
    /// More, by kind.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
}

/// What this engine is and uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Info {
    /// Version of the engine.
    pub version: String,
    /// Id of the state directory.
    pub instance: String,
    /// Its pid.
    pub pid: u32,
    /// The state directory.
    pub state_dir: String,
    /// The run directory.
    pub run_dir: String,
    /// The volume backend.
    pub backend: String,
    /// Why that one.
    pub backend_reason: String,
    /// The monitor of sandboxes that ask for none, with version and accelerator; none: it was not looked for yet.
    pub monitor: Option<String>,
    /// Why that one.
    pub monitor_reason: String,
    /// Why that accelerator.
    pub accelerator_reason: String,
    /// Sandboxes by state.
    pub sandboxes: BTreeMap<String, u64>,
    /// Templates.
    pub templates: u64,
    /// Kernels.
    pub kernels: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Handles in the ledger.
    pub handles: u64,
    /// Bytes free on the state directory's disk.
    pub disk_free: ByteSize,
    /// Bytes of memory the host could still give.
    pub memory_available: ByteSize,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, but slower or with less.
    Warning,
    /// Something that is needed fails.
    Failed,
}

/// One check of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at: "kvm", "mke2fs", "state directory", …
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// The command or step that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// What `doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// False when something that is needed fails.
    pub healthy: bool,
    /// The checks.
    pub checks: Vec<Check>,
    /// What the ledger thinks differs from the host, as the steps that recovery would take.
    pub differences: Vec<String>,
}

/// What `gc` released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcReport {
    /// What was released, in words.
    pub released: Vec<String>,
    /// What is left and cannot be attributed, or did not go, and why.
    pub left: Vec<String>,
}
