//! What a client is told of an import while it is under way.

use std::cell::Cell;
use std::time::{Duration, Instant};

use cowslip_image::{Cancel, Phase, Progress};
use cowslip_model::api::ImportMessage;
use tokio::sync::mpsc;

/// Sends progress to a client; a client that is gone cancels the import.
pub(super) struct Reporter {
    messages: mpsc::Sender<ImportMessage>,
    cancel: Cancel,
    phase: Cell<&'static str>,
    /// When the client was told last.
    told: Cell<Instant>,
}

/// A client is told no more often than this: the import counts every entry.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(50);

impl Reporter {
    /// Tells `messages`; one that nobody takes cancels what has `cancel`.
    pub(super) fn new(messages: mpsc::Sender<ImportMessage>, cancel: Cancel) -> Self {
        Self {
            messages,
            cancel,
            phase: Cell::new("reading"),
            told: Cell::new(Instant::now()),
        }
    }

    /// How far it is.
    fn send(&self, bytes: u64, entries: u64) {
        let message = ImportMessage::Progress {
            phase: self.phase.get().to_owned(),
            entries,
            bytes,
        };
        // A full channel only means that the client is slower than the import.
        if let Err(mpsc::error::TrySendError::Closed(_)) = self.messages.try_send(message) {
            self.cancel.cancel();
        }
    }
}

impl Progress for Reporter {
    fn phase(&self, phase: Phase, _total: Option<u64>) {
        self.phase.set(match phase {
            Phase::Reading => "reading",
            Phase::Writing => "writing",
            Phase::Sealing => "sealing",
        });
        self.send(0, 0);
    }

    fn advance(&self, bytes: u64, entries: u64) {
        if self.told.get().elapsed() >= TELL_EVERY {
            self.told.set(Instant::now());
            self.send(bytes, entries);
        }
    }
}
