//! What a verb reports: one line, the causes behind it, and the next step.

use std::path::PathBuf;

use cowslip_host::HostError;
use cowslip_ledger::LedgerError;
use cowslip_ledger::lock::LockError;
use cowslip_model::api::{ErrorBody, ErrorCode};
use cowslip_model::{Name, PublishedPort, SandboxState};
use cowslip_proto::client::CallError;
use cowslip_registry::PullError;
use cowslip_store::StoreError;
use cowslip_vmm::VmmError;

use crate::guest::GuestError;
use crate::unwind::UnwindError;

/// Why the engine did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state directory cannot be used.
    #[error("use the state directory \"{path}\": {source}")]
    StateDir {
        /// It.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It belongs to somebody else.
    #[error(
        "the state directory \"{path}\" belongs to user {owner}: choose another with --state-dir, or run as that user"
    )]
    ForeignStateDir {
        /// It.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
    },
    /// The configured volume backend does not work on this host.
    #[error(
        "storage.backend is \"dm\", and this host cannot do it: {why}. Load the modules dm_snapshot and loop and run as root, or choose another backend"
    )]
    Backend {
        /// What is missing.
        why: String,
    },
    /// Another engine has it.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The ledger does not open.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The host layer does not open.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The ledger was lost and could not be built again.
    #[error("build the ledger again from the files beside it: {0}")]
    Rebuild(#[from] Box<EngineError>),
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A value of the request.
    #[error("{0}")]
    Invalid(String),
    /// A `run` of nothing.
    #[error("run \"{template}\": there is no command, and its image names none")]
    NoCommand {
        /// The template.
        template: String,
    },
    /// No such object.
    #[error("there is no {kind} \"{reference}\"")]
    NotFound {
        /// "sandbox", "template", …
        kind: &'static str,
        /// What was asked for.
        reference: String,
        /// Names like it.
        near: Vec<String>,
    },
    /// The start of an id that several objects have.
    #[error("\"{reference}\" is the start of several ids: {}", found.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// What begins like that.
        found: Vec<String>,
    },
    /// The name is taken.
    #[error("the name \"{name}\" is taken by another {kind}")]
    Exists {
        /// "sandbox", "template", …
        kind: &'static str,
        /// The name.
        name: Name,
    },
    /// The state forbids it.
    #[error("cannot {verb} sandbox \"{name}\": it is {state}")]
    State {
        /// The verb.
        verb: &'static str,
        /// The sandbox.
        name: Name,
        /// Its state.
        state: SandboxState,
        /// Why it failed, where it did.
        reason: Option<String>,
    },
    /// It was removed while it booted, or while a step of a build was taken in it.
    #[error("sandbox \"{name}\" was removed before it was ready")]
    CalledOff {
        /// The sandbox.
        name: Name,
    },
    /// A port that is to be connected to.
    #[error("nothing listens on port {port} in sandbox \"{name}\"")]
    NothingListens {
        /// The sandbox.
        name: Name,
        /// The port.
        port: u16,
    },
    /// Its vCPUs stand still until there is space on the host's disk.
    #[error(
        "sandbox \"{name}\" stands still: the host's disk is nearly full; it goes on when space is freed"
    )]
    Frozen {
        /// The sandbox.
        name: String,
    },
    /// The machine ended before its guest was ready.
    #[error(
        "sandbox \"{name}\" did not come up: its machine ended: {words}; its console ends:\n{console}"
    )]
    EndedInBoot {
        /// The sandbox.
        name: Name,
        /// What the machine said.
        words: String,
        /// The end of the guest's console.
        console: String,
        /// What was being done.
        source: Box<EngineError>,
    },
    /// The disk of a running sandbox broke.
    #[error(
        "the disk of sandbox \"{name}\" takes no more writes (device-mapper says \"{state}\": the host's \
         disk refused one, for want of space or since it is defective); all that it had taken before is \
         there: see to the host's disk, and start the sandbox again"
    )]
    BrokenDisk {
        /// The sandbox.
        name: String,
        /// What the kernel says of the device.
        state: String,
    },
    /// Others depend on it.
    #[error("{kind} \"{name}\" is in use by {}", users.join(", "))]
    InUse {
        /// "template", …
        kind: &'static str,
        /// Its name.
        name: String,
        /// Who uses it.
        users: Vec<String>,
        /// What to do.
        hint: &'static str,
    },
    /// A port of the host leads to somebody else.
    #[error(
        "the port {port} cannot be published: {by} has that port of this host; publish it at another, or end that"
    )]
    PortTaken {
        /// The port.
        port: PublishedPort,
        /// Who has it.
        by: String,
    },
    /// The command is not in the guest.
    #[error("{0}")]
    CommandNotFound(String),
    /// The command cannot be run.
    #[error("{0}")]
    CommandNotExecutable(String),
    /// Memory or disk is short.
    #[error("{0}")]
    NoSpace(String),
    /// This host cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// A verb failed, and so did the clean-up after it.
    #[error("{cause}; and the clean-up failed too: {rollback}")]
    Rollback {
        /// The first failure.
        #[source]
        cause: Box<EngineError>,
        /// What failed after it.
        rollback: String,
    },
    /// An image could not be imported.
    #[error("import the template \"{name}\"")]
    Import {
        /// Its name.
        name: Name,
        /// The cause.
        source: cowslip_image::ImportError,
    },
    /// A template could not be exported.
    #[error("export the template \"{name}\"")]
    Export {
        /// Its name.
        name: String,
        /// The cause.
        source: cowslip_image::ExportError,
    },
    /// An image could not be pulled.
    #[error(transparent)]
    Pull(#[from] cowslip_registry::PullError),
    /// The cache of images.
    #[error(transparent)]
    Cache(#[from] cowslip_registry::CacheError),
    /// A disk could not become a template.
    #[error("make the template \"{name}\"")]
    Flatten {
        /// Its name.
        name: Name,
        /// The cause.
        source: cowslip_image::ImportError,
    },
    /// A kernel could not be imported.
    #[error("import the kernel \"{name}\"")]
    ImportKernel {
        /// Its name.
        name: Name,
        /// The cause.
        source: cowslip_guest::ImportError,
    },
    /// Volumes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The monitor.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Something could not be released; it stays in the ledger.
    #[error(transparent)]
    Unwind(#[from] UnwindError),
    /// A defect of cowslip.
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    /// This failure, and what failed while cleaning up after it.
    #[must_use]
    pub fn and_rollback(self, outcome: Result<(), EngineError>) -> Self {
        match outcome {
            Ok(()) => self,
            Err(rollback) => Self::Rollback {
                cause: Box::new(self),
                rollback: chain(&rollback).join(": "),
            },
        }
    }

    /// This failure, and that the machine did not go on after it. One that ended in it cannot, which is no
    /// second failure.
    #[must_use]
    pub fn and_resume(self, outcome: Result<(), EngineError>) -> Self {
        let ended = |error: &Self| matches!(error, Self::Vmm(VmmError::Ended { .. }));
        match outcome {
            Err(resume) if ended(&self) && ended(&resume) => self,
            outcome => self.and_rollback(outcome),
        }
    }

    /// For programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_)
            | Self::NoCommand { .. }
            | Self::Ambiguous { .. }
            | Self::Import { .. }
            | Self::Export { .. }
            | Self::Flatten { .. } => {
                if self.disk_full() {
                    ErrorCode::NoSpace
                } else {
                    ErrorCode::Invalid
                }
            }
            Self::ImportKernel { .. } => ErrorCode::Invalid,
            Self::Pull(error) => match error {
                PullError::NotFound { .. } | PullError::NotCached { .. } => ErrorCode::NotFound,
                PullError::Unauthorized { .. } => ErrorCode::Forbidden,
                PullError::DiskFull { .. } | PullError::TooLarge { .. } => ErrorCode::NoSpace,
                PullError::Image { .. } => ErrorCode::Invalid,
                _ if self.disk_full() => ErrorCode::NoSpace,
                _ => ErrorCode::Internal,
            },
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Exists { .. } => ErrorCode::Exists,
            Self::State { .. }
            | Self::CalledOff { .. }
            | Self::NothingListens { .. }
            | Self::Frozen { .. }
            | Self::BrokenDisk { .. }
            | Self::PortTaken { .. }
            | Self::InUse { .. } => ErrorCode::Conflict,
            Self::CommandNotFound(_) => ErrorCode::CommandNotFound,
            Self::CommandNotExecutable(_) => ErrorCode::CommandNotExecutable,
            Self::NoSpace(_) => ErrorCode::NoSpace,
            Self::Unsupported(_) => ErrorCode::Unsupported,
            Self::Rollback { cause, .. } => cause.code(),
            Self::EndedInBoot { source, .. } => source.code(),
            Self::Guest(GuestError::TimedOut { .. }) | Self::Vmm(VmmError::TimedOut { .. }) => {
                ErrorCode::TimedOut
            }
            Self::Guest(GuestError::Call {
                source: CallError::NotFound { .. },
                ..
            }) => ErrorCode::NotFound,
            Self::Guest(GuestError::Call {
                source: CallError::Refused { .. },
                ..
            }) => ErrorCode::Invalid,
            Self::Store(StoreError::Size { .. }) => ErrorCode::Invalid,
            Self::Vmm(VmmError::Unusable { .. } | VmmError::Incompatible { .. }) => {
                ErrorCode::Unsupported
            }
            _ if self.disk_full() => ErrorCode::NoSpace,
            _ => ErrorCode::Internal,
        }
    }

    /// Whether a full disk is behind it.
    fn disk_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && matches!(
                    io.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
                )
            {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The next step.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { near, .. } if !near.is_empty() => {
                let quoted: Vec<String> = near.iter().map(|name| format!("\"{name}\"")).collect();
                Some(format!("did you mean {}?", quoted.join(" or ")))
            }
            Self::NotFound { kind, .. } => Some(match *kind {
                "sandbox" => "see what there is with: cowslip ls".to_owned(),
                "sandbox or checkpoint" => {
                    "see what there is with: cowslip ls, and: cowslip checkpoint ls".to_owned()
                }
                kind => format!("see what there is with: cowslip {kind} ls"),
            }),
            Self::State {
                state: SandboxState::Failed,
                name,
                ..
            } => Some(format!(
                "start it again with: cowslip start {name}, or remove it with: cowslip rm {name}"
            )),
            Self::State {
                state: SandboxState::Paused,
                name,
                ..
            } => Some(format!("resume it first with: cowslip resume {name}")),
            Self::State {
                state: SandboxState::Stopped,
                name,
                ..
            } => Some(format!("start it first with: cowslip start {name}")),
            Self::State {
                state: SandboxState::Running,
                name,
                verb,
                ..
            } if *verb == "remove" => {
                Some(format!("stop it first, or use: cowslip rm --force {name}"))
            }
            Self::InUse { hint, .. } => Some((*hint).to_owned()),
            Self::NoCommand { template } => Some(format!(
                "a shell: cowslip run --rm -it {template} sh; just a sandbox: cowslip run -d {template}"
            )),
            Self::NothingListens { .. } => {
                Some("a server in it must listen on 127.0.0.1, or on all addresses".to_owned())
            }
            Self::Exists { .. } => Some("choose another name, or remove that one".to_owned()),
            Self::Rollback { cause, .. } => cause.hint(),
            _ if self.disk_full() => Some(
                "the disk is full: free some space; cowslip gc releases what nothing needs"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The error as the API gives it.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let mut lines = chain(self);
        let message = if lines.is_empty() {
            String::new()
        } else {
            lines.remove(0)
        };
        ErrorBody {
            code: self.code(),
            message,
            causes: lines,
            hint: self.hint(),
        }
    }
}

/// An error and its causes, without those that only repeat what the one before said.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let line = without_number(error.to_string());
        if lines.last().is_none_or(|last| !last.contains(&line)) {
            lines.push(line);
        }
        next = error.source();
    }
    lines
}

/// A text without the "(os error N)" that Rust appends to the system's words: it tells users nothing.
fn without_number(mut text: String) -> String {
    const MARK: &str = " (os error ";
    while let Some(start) = text.find(MARK) {
        let Some(length) = text[start..].find(')') else {
            return text;
        };
        text.replace_range(start..=start + length, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_have_no_numbers() {
        let text = "open \"/x\": No such file or directory (os error 2); and more (os error 13)";
        assert_eq!(
            without_number(text.to_owned()),
            "open \"/x\": No such file or directory; and more"
        );
        assert_eq!(
            without_number("odd (os error 2".to_owned()),
            "odd (os error 2"
        );
    }
}
