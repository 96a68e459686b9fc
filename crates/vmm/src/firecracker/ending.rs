//! The end of a Firecracker, and its last words.

use std::path::{Path, PathBuf};

use cowslip_host::process::{ExitStatus, ProcessIdentity, ProcessSpec};
use cowslip_model::SandboxId;

use super::api::{ANSWER_BOUND_SECONDS, ApiError};
use crate::ending::{Ending, in_words};
use crate::{VmmError, words};

/// What its log says when the guest ended by itself. An adopted process has no exit status.
const ENDED_WELL: &str = "exiting successfully";

/// Begins to watch.
pub(super) fn watch(
    sandbox: SandboxId,
    process: ProcessSpec,
    identity: ProcessIdentity,
    log: PathBuf,
) -> Ending {
    Ending::watch(sandbox, process, identity, move |status| async move {
        last_words(&log, status)
    })
}

/// What it left to say; none where its guest ended by itself. A guest ends by a reset: Firecracker has
/// no other way, and does not tell a panic from a shutdown.
pub(super) fn last_words(log: &Path, status: Option<ExitStatus>) -> Option<String> {
    let lines = words::last_lines(log, 0);
    let ended_well = || lines.iter().any(|line| line.contains(ENDED_WELL));
    match status {
        Some(status) if status.code == Some(0) => return None,
        None if ended_well() => return None,
        _ => {}
    }
    // It logs whatever it does; its level is in brackets: `[id:thread:ERROR]`.
    let complaints = lines
        .iter()
        .filter(|line| line.contains(":ERROR") || line.contains(":WARN"))
        .map(|line| {
            line.split_once("] ")
                .map_or(line.as_str(), |(_, rest)| rest)
        });
    let all: Vec<String> = complaints
        .map(str::to_owned)
        .chain(in_words(status))
        .collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Puts a request's failure in the machine's terms.
pub(super) async fn explain(ending: &Ending, operation: &'static str, error: ApiError) -> VmmError {
    let sandbox = ending.sandbox();
    match error {
        ApiError::TimedOut { .. } => VmmError::TimedOut {
            operation,
            sandbox,
            seconds: ANSWER_BOUND_SECONDS,
        },
        ApiError::Closed { .. } => ending.channel_lost(operation, error.to_string()).await,
        ApiError::Watch(error) => error.into(),
        ApiError::Refused { .. } | ApiError::Unreadable { .. } | ApiError::Unsendable { .. } => {
            VmmError::Refused {
                operation,
                sandbox,
                message: error.to_string(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_its_complaints_and_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let exit = |code, signal| Some(ExitStatus { code, signal });
        assert_eq!(last_words(&log, exit(Some(0), None)), None);
        assert_eq!(
            last_words(&log, exit(None, Some(9))).as_deref(),
            Some("ended by signal 9")
        );
        let lines = "2026-11-21T09:00:00 [a:main:INFO] Running\n\
                     2026-11-21T09:00:01 [a:fc_vcpu 0:ERROR] no such disk\n";
        std::fs::write(&log, lines).unwrap();
        assert_eq!(
            last_words(&log, exit(Some(1), None)).as_deref(),
            Some("no such disk; exit code 1")
        );
        assert_eq!(last_words(&log, None).as_deref(), Some("no such disk"));
        let lines =
            format!("{lines}2026 [a:main:INFO] Firecracker exiting successfully. exit_code=0\n");
        std::fs::write(&log, lines).unwrap();
        assert_eq!(last_words(&log, None), None);
    }
}
