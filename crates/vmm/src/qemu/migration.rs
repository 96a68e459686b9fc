//! Memory and device state to a file and back, by QEMU's migration to a descriptor.
//!
//! There is no time limit, only a bound on standing still: the outcome comes as an event, and where
//! none comes the file's growth (or the reading position in it) shows whether work goes on (R40).

use std::fs::File;
use std::io::Seek;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::qmp::{Event, Qmp, QmpError};

/// How long a migration may stand still, in seconds.
pub(super) const STALL_BOUND_SECONDS: u64 = 60;
/// Bytes a second: no bound worth the name; QEMU's own would be 128 MiB.
const BANDWIDTH: u64 = 1 << 40;
/// The name a descriptor is given in the monitor.
const NAME: &str = "image";

/// Why an image was not written or not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum MigrationError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("{0}")]
    Failed(String),
    #[error("it stood still for {STALL_BOUND_SECONDS} s")]
    Stalled,
    #[error("pass the image: {0}")]
    File(#[from] std::io::Error),
}

/// Settings of every machine, made once after its start.
pub(super) async fn prepare(qmp: &Qmp) -> Result<(), QmpError> {
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.execute("migrate-set-capabilities", events).await?;
    qmp.execute(
        "migrate-set-parameters",
        json!({ "max-bandwidth": BANDWIDTH }),
    )
    .await?;
    Ok(())
}

/// Cancels a migration whose waiting was given up, so that the machine can go on.
struct Unfinished<'a>(Option<&'a Qmp>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(qmp) = self.0 {
            qmp.post("migrate_cancel");
        }
    }
}

/// Writes the stopped machine's state to `image`. The machine stays stopped.
pub(super) async fn save(qmp: &Qmp, image: &File) -> Result<(), MigrationError> {
    let mut events = qmp.subscribe();
    qmp.execute_with_fd(
        "getfd",
        json!({ "fdname": NAME }),
        image.try_clone()?.into(),
    )
    .await?;
    let mut unfinished = Unfinished(Some(qmp));
    if let Err(error) = qmp
        .execute("migrate", json!({ "uri": format!("fd:{NAME}") }))
        .await
    {
        let _ = qmp.execute("closefd", json!({ "fdname": NAME })).await;
        return Err(error.into());
    }
    let outcome = outcome(qmp, &mut events, || {
        image.metadata().map_or(0, |found| found.len())
    })
    .await;
    if matches!(outcome, Err(MigrationError::Stalled)) {
        return outcome;
    }
    unfinished.0 = None;
    finalized(qmp).await?;
    outcome
}

/// Ends a migration that may be under way, so that the machine can go on.
pub(super) async fn abandon(qmp: &Qmp) -> Result<(), MigrationError> {
    let told = qmp.execute("query-migrate", json!({})).await?;
    if matches!(
        told["status"].as_str(),
        Some("setup" | "active" | "device" | "cancelling")
    ) {
        qmp.execute("migrate_cancel", json!({})).await?;
    }
    finalized(qmp).await
}

/// Waits until the monitor has finished with a migration whose outcome it has told already: for an
/// instant it takes no `cont`, and after a failure for another no new migration. It has no event for the
/// end of either.
async fn finalized(qmp: &Qmp) -> Result<(), MigrationError> {
    const BETWEEN: Duration = Duration::from_millis(1);
    let bound = Duration::from_secs(STALL_BOUND_SECONDS);
    let wait = async {
        while qmp.execute("query-status", json!({})).await?["status"] == "finish-migrate"
            || holds_migration(qmp).await?
        {
            tokio::time::sleep(BETWEEN).await;
        }
        Ok(())
    };
    tokio::time::timeout(bound, wait)
        .await
        .unwrap_or(Err(MigrationError::Stalled))
}

/// Whether the monitor still has a migration among what it could break off, which refuses the next one as
/// its double. Monitors without that list (before QEMU 6.0) know no doubles.
async fn holds_migration(qmp: &Qmp) -> Result<bool, QmpError> {
    let listed = match qmp.execute("query-yank", json!({})).await {
        Err(QmpError::Refused { .. }) => return Ok(false),
        other => other?,
    };
    Ok(listed
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["type"] == "migration")))
}

/// Reads the state from `image` into a machine that waits for it.
pub(super) async fn load(qmp: &Qmp, image: &File) -> Result<(), MigrationError> {
    let mut events = qmp.subscribe();
    qmp.execute_with_fd(
        "getfd",
        json!({ "fdname": NAME }),
        image.try_clone()?.into(),
    )
    .await?;
    qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{NAME}") }))
        .await?;
    // The passed descriptor shares its position with ours.
    let position = || (&*image).stream_position().unwrap_or(0);
    outcome(qmp, &mut events, position).await
}

/// Waits for the end of the migration under way.
async fn outcome(
    qmp: &Qmp,
    events: &mut Receiver<Event>,
    progress: impl Fn() -> u64,
) -> Result<(), MigrationError> {
    let mut seen = progress();
    loop {
        let bound = Duration::from_secs(STALL_BOUND_SECONDS);
        let status = match tokio::time::timeout(bound, events.recv()).await {
            Ok(Ok(Event { name, data })) if name == "MIGRATION" => data,
            Ok(Ok(_)) => continue,
            // Some were missed, the one waited for perhaps among them.
            Ok(Err(RecvError::Lagged(_))) => qmp.execute("query-migrate", json!({})).await?,
            Ok(Err(RecvError::Closed)) => return Err(qmp.why_closed().into()),
            Err(_) => {
                let now = progress();
                if now == seen {
                    return Err(MigrationError::Stalled);
                }
                seen = now;
                continue;
            }
        };
        match status["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => return Err(MigrationError::Failed(reason(qmp).await)),
            _ => {}
        }
    }
}

async fn reason(qmp: &Qmp) -> String {
    let told = match qmp.execute("query-migrate", json!({})).await {
        Ok(status) => status,
        // A monitor that could not load an image ends; its last words tell more.
        Err(_) => Value::Null,
    };
    told["error-desc"]
        .as_str()
        .unwrap_or("the monitor does not say why")
        .to_owned()
}
