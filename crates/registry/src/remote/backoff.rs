//! How often something is tried again, and when.

use std::time::Duration;

use super::Failure;
use crate::error::PullError;

/// So often something is tried in a row.
const ATTEMPTS: u32 = 5;
const FIRST: Duration = Duration::from_millis(250);
/// Who asks for more patience than this is told to the user.
const LONGEST: Duration = Duration::from_secs(20);

/// The attempts at one thing.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failed: u32,
}

impl Backoff {
    /// Something came of the last attempt: what comes is a new series.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits until it can be tried again.
    ///
    /// # Errors
    /// The failure's, when it is not to be tried again.
    pub(crate) async fn wait(&mut self, failure: Failure) -> Result<(), PullError> {
        let wait = match failure.again {
            Some(asked) => asked.unwrap_or(FIRST * 2_u32.pow(self.failed)),
            None => return Err(*failure.error),
        };
        self.failed += 1;
        if self.failed >= ATTEMPTS || wait > LONGEST {
            return Err(*failure.error);
        }
        tracing::debug!(error = %failure.error, ?wait, "a registry is asked again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(again: Option<Option<Duration>>) -> Failure {
        Failure {
            error: Box::new(PullError::Cancelled),
            again,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_up() {
        let mut backoff = Backoff::default();
        let started = tokio::time::Instant::now();
        for _ in 1..ATTEMPTS {
            backoff.wait(failure(Some(None))).await.unwrap();
        }
        assert!(backoff.wait(failure(Some(None))).await.is_err());
        assert_eq!(started.elapsed(), FIRST * 15);
        backoff.reset();
        let asked = Duration::from_secs(7);
        backoff.wait(failure(Some(Some(asked)))).await.unwrap();
        assert_eq!(started.elapsed(), FIRST * 15 + asked);
        assert!(
            backoff
                .wait(failure(Some(Some(LONGEST * 2))))
                .await
                .is_err()
        );
        assert!(backoff.wait(failure(None)).await.is_err());
    }
}
