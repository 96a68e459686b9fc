//! Requests that had no good answer.

use cowslip_host::HostError;

use super::ANSWER_BOUND_SECONDS;

/// A request that had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Firecracker refused it.
    #[error("{request}: {message}")]
    Refused {
        /// The request: `PUT /vsock`.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Firecracker's own words, or that it had none.
        message: String,
    },
    /// There is no connection, or it ended before the answer did. Firecracker ended, or is none.
    #[error("{request}: {why}")]
    Closed {
        /// The request.
        request: String,
        /// What the connection says.
        why: String,
    },
    /// An answer that says success and cannot be read.
    #[error(
        "{request}: the answer cannot be read: {why}; is this a Firecracker of another version?"
    )]
    Unreadable {
        /// The request.
        request: String,
        /// What is wrong with it.
        why: String,
    },
    /// No answer within [`ANSWER_BOUND_SECONDS`].
    #[error("{request}: no answer within {ANSWER_BOUND_SECONDS} s")]
    TimedOut {
        /// The request.
        request: String,
    },
    /// A value that JSON cannot carry: a path that is no UTF-8.
    #[error("{request}: it cannot be written as JSON; use paths that are UTF-8")]
    Unsendable {
        /// The request.
        request: String,
        /// What JSON says.
        #[source]
        source: serde_json::Error,
    },
    /// The socket's directory cannot be watched.
    #[error(transparent)]
    Watch(#[from] HostError),
}

impl ApiError {
    pub(super) fn closed(request: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Closed {
            request: request.into(),
            why: why.into(),
        }
    }
}
