//! The end of a monitor's process.
//!
//! One task waits for the process, since the kernel tells an exit status once, and since all who ask
//! must hear the same. A control channel's own end proves nothing: only the process' does.

use std::time::Duration;

use cowslip_host::process::{self, ExitStatus, ProcessIdentity, ProcessSpec};
use cowslip_model::SandboxId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::VmmError;

/// Between two tries to watch a process that the kernel will not let us watch.
const WATCH_AGAIN: Duration = Duration::from_secs(1);
/// How much later than its control channel a process may end and still count as ended with it.
const LATE: Duration = Duration::from_secs(1);

/// Watches one monitor until it is dropped.
#[derive(Debug)]
pub(crate) struct Ending {
    sandbox: SandboxId,
    words: watch::Receiver<Option<Option<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ending {
    /// Begins to watch. `last_words` makes of the exit status what the machine left to say; none is
    /// the status of a process that another engine started.
    pub(crate) fn watch<W>(
        sandbox: SandboxId,
        process: ProcessSpec,
        identity: ProcessIdentity,
        last_words: impl FnOnce(Option<ExitStatus>) -> W + Send + 'static,
    ) -> Self
    where
        W: Future<Output = Option<String>> + Send + 'static,
    {
        let (tell, words) = watch::channel(None);
        let task = tokio::spawn(async move {
            let status = wait(sandbox, &process, &identity).await;
            tell.send_replace(Some(last_words(status).await));
        });
        Self {
            sandbox,
            words,
            task,
        }
    }

    /// Whose machine it is.
    pub(crate) fn sandbox(&self) -> SandboxId {
        self.sandbox
    }

    /// Resolves when the process has ended, with whatever it left to say.
    pub(crate) async fn ended(&self) -> Option<String> {
        let mut words = self.words.clone();
        match words.wait_for(Option::is_some).await {
            Ok(found) => found.clone().flatten(),
            Err(_) => None,
        }
    }

    /// As [`Ending::ended`], where the process ends about now; else none.
    pub(crate) async fn ending(&self) -> Option<Option<String>> {
        tokio::time::timeout(LATE, self.ended()).await.ok()
    }

    /// A broken channel in the machine's terms: it is the machine's end only where its process has
    /// ended.
    pub(crate) async fn channel_lost(&self, operation: &'static str, why: String) -> VmmError {
        let sandbox = self.sandbox;
        match self.ending().await {
            Some(detail) => VmmError::Ended {
                operation,
                sandbox,
                detail,
            },
            None => VmmError::ChannelLost {
                operation,
                sandbox,
                why,
            },
        }
    }
}

/// An exit status that is no success, in words.
pub(crate) fn in_words(status: Option<ExitStatus>) -> Option<String> {
    let status = status?;
    match (status.code, status.signal) {
        (Some(0), _) | (None, None) => None,
        (Some(code), _) => Some(format!("exit code {code}")),
        (None, Some(signal)) => Some(format!("ended by signal {signal}")),
    }
}

async fn wait(
    sandbox: SandboxId,
    process: &ProcessSpec,
    identity: &ProcessIdentity,
) -> Option<ExitStatus> {
    loop {
        match process::ended(process, identity).await {
            Ok(status) => return status,
            Err(error) => {
                tracing::warn!(%sandbox, %error, "the monitor cannot be watched");
                tokio::time::sleep(WATCH_AGAIN).await;
            }
        }
    }
}
