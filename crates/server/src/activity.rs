//! Who is being served: the number of open requests and sessions, so that an idle engine can end.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts clients.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    count: Arc<watch::Sender<usize>>,
}

/// One client, until it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    count: Arc<watch::Sender<usize>>,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            count: Arc::new(watch::Sender::new(0)),
        }
    }

    /// One more client.
    pub(crate) fn enter(&self) -> Client {
        self.count.send_modify(|count| *count += 1);
        Client {
            count: Arc::clone(&self.count),
        }
    }

    /// Resolves when there is no client.
    pub(crate) async fn none(&self) {
        self.until(|count| count == 0).await;
    }

    /// Resolves when there is a client.
    pub(crate) async fn some(&self) {
        self.until(|count| count > 0).await;
    }

    async fn until(&self, wanted: impl Fn(usize) -> bool) {
        // Fails only without a sender, and we hold one.
        let _ = self
            .count
            .subscribe()
            .wait_for(|count| wanted(*count))
            .await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_are_counted_until_they_go() {
        let activity = Activity::new();
        activity.none().await;
        let one = activity.enter();
        let two = activity.enter();
        activity.some().await;
        drop(one);
        assert_eq!(*activity.count.borrow(), 1);
        drop(two);
        activity.none().await;
    }
}
