//! The end of a QEMU, and its last words.

use cowslip_host::process::{ExitStatus, ProcessIdentity, ProcessSpec};
use cowslip_model::SandboxId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::launch::Paths;
use super::qmp::{ANSWER_BOUND_SECONDS, Event, QmpError};
use crate::VmmError;
use crate::ending::{Ending, in_words};

/// Why the guest ended, as the monitor told it; none: it did not tell.
type Farewell = Option<Reason>;

/// What made a guest end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// It powered off, as it may: that leaves no last words.
    PoweredOff,
    /// Anything else, in words.
    Other(String),
}

/// Begins to watch. The sender is for [`listen`], or to be dropped where there is no channel.
pub(super) fn watch(
    sandbox: SandboxId,
    process: ProcessSpec,
    identity: ProcessIdentity,
    paths: Paths,
) -> (Ending, watch::Sender<Farewell>) {
    let (farewell, mut told) = watch::channel(None);
    let ending = Ending::watch(sandbox, process, identity, move |status| async move {
        // The channel closed with the process, and its last events lie before the end of the
        // stream: the listener gives its sender up when it has seen them.
        while told.changed().await.is_ok() {}
        let farewell = told.borrow().clone();
        last_words(farewell, paths.last_words(), status)
    });
    (ending, farewell)
}

/// Puts a command's failure in the machine's terms.
pub(super) async fn explain(ending: &Ending, operation: &'static str, error: QmpError) -> VmmError {
    let sandbox = ending.sandbox();
    match error {
        QmpError::Refused { .. } => VmmError::Refused {
            operation,
            sandbox,
            message: error.to_string(),
        },
        QmpError::TimedOut { .. } => VmmError::TimedOut {
            operation,
            sandbox,
            seconds: ANSWER_BOUND_SECONDS,
        },
        QmpError::Closed(why) => ending.channel_lost(operation, why).await,
    }
}

/// Remembers why the guest ended until the control channel closes. Holds nothing that keeps it open.
pub(super) async fn listen(mut events: Receiver<Event>, tell: watch::Sender<Farewell>) {
    loop {
        match events.recv().await {
            Ok(event) if event.name == "SHUTDOWN" => {
                let reason = event.data["reason"]
                    .as_str()
                    .unwrap_or("it does not say why");
                tell.send_replace(Some(match reason {
                    "guest-shutdown" => Reason::PoweredOff,
                    "guest-reset" => Reason::Other(
                        "the guest reset itself (a reboot, or a kernel panic)".to_owned(),
                    ),
                    other => Reason::Other(format!("the monitor ended the guest ({other})")),
                }));
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// What the monitor told of its guest, its own words, and its exit status: whatever there is.
fn last_words(told: Farewell, said: Option<String>, status: Option<ExitStatus>) -> Option<String> {
    let status = in_words(status);
    let told = match (told, &status) {
        // Whatever the monitor grumbled about, the guest's end is no failure.
        (Some(Reason::PoweredOff), None) => return None,
        (Some(Reason::PoweredOff), Some(_)) => Some("the guest powered off".to_owned()),
        (Some(Reason::Other(words)), _) => Some(words),
        (None, _) => None,
    };
    let all: Vec<String> = [told, said, status].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_whatever_there_is() {
        let exit = |code| {
            Some(ExitStatus {
                code: Some(code),
                signal: None,
            })
        };
        assert_eq!(last_words(None, None, exit(0)), None);
        assert_eq!(last_words(None, None, None), None);
        let other = Some(Reason::Other("a".into()));
        let text = last_words(other, Some("b".into()), exit(3)).unwrap();
        assert_eq!(text, "a, b, exit code 3");
    }

    #[test]
    fn a_guest_that_powers_off_leaves_none() {
        let warning = || Some("qemu: warning: odd".to_owned());
        assert_eq!(last_words(Some(Reason::PoweredOff), warning(), None), None);
        let killed = Some(ExitStatus {
            code: None,
            signal: Some(9),
        });
        assert!(last_words(Some(Reason::PoweredOff), None, killed).is_some());
    }
}
