//! The one signal that ends the server: given by a signal handler, a request, or idleness.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Ends the server when begun. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    reason: Arc<OnceLock<&'static str>>,
}

impl Shutdown {
    /// One that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins, for this reason. Only the first one counts.
    pub fn begin(&self, reason: &'static str) {
        // A later reason is no news.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Resolves when it has begun.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// Why it began.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason.get().copied().unwrap_or("nothing")
    }
}
