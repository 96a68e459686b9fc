//! What can go wrong in talking to the agent.

use std::time::Duration;

use tonic::{Code, Status};

use crate::link::HandshakeError;
use crate::pb::{StartFailed, StartFailure};

/// Why there is no connection to the agent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No session on the link.
    #[error("cannot reach the agent")]
    Link(#[from] HandshakeError),
    /// HTTP/2 did not start.
    #[error("cannot start HTTP/2 with the agent")]
    Http(#[source] hyper::Error),
    /// The agent did not say hello.
    #[error("the agent did not say hello")]
    Hello(#[source] CallError),
    /// Agent and engine do not understand each other.
    #[error(
        "the agent in the guest speaks protocol {guest}, this engine {host}; import the kernel again"
    )]
    Protocol {
        /// What the guest speaks.
        guest: u32,
        /// What we speak.
        host: u32,
    },
    /// Nothing came back in time.
    #[error("the agent did not answer within {after:?}")]
    Timeout {
        /// How long it was given.
        after: Duration,
    },
}

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer in time; the guest may be wedged or very slow.
    #[error("the agent did not answer \"{op}\" within {after:?}")]
    Timeout {
        /// What was asked.
        op: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// The connection ended: the guest stopped, or its monitor did.
    #[error("the connection to the agent was lost during \"{op}\"")]
    LinkLost {
        /// What was asked.
        op: &'static str,
    },
    /// The file, process or user that was named does not exist.
    #[error("{message}")]
    NotFound {
        /// What was asked.
        op: &'static str,
        /// What was not found, in the agent's words.
        message: String,
    },
    /// The agent could not or would not.
    #[error("{message}")]
    Refused {
        /// What was asked.
        op: &'static str,
        /// The agent's reason as a gRPC code.
        code: Code,
        /// The agent's reason in words.
        message: String,
    },
    /// What was to be sent could not be read on our side.
    #[error("cannot read what \"{op}\" was to send")]
    Source {
        /// What was asked.
        op: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl CallError {
    pub(crate) fn from_status(op: &'static str, status: &Status) -> Self {
        // The agent's own answers carry no source; what the transport made up does.
        if std::error::Error::source(status).is_some() {
            return Self::LinkLost { op };
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::NotFound { op, message },
            Code::Unavailable => Self::LinkLost { op },
            code => Self::Refused { op, code, message },
        }
    }

    /// True when the connection is gone and every further call on it will fail too.
    #[must_use]
    pub fn is_link_lost(&self) -> bool {
        matches!(self, Self::LinkLost { .. })
    }
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No such program.
    #[error("{0}")]
    NotFound(String),
    /// The program cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// The working directory cannot be entered.
    #[error("{0}")]
    BadCwd(String),
    /// No such user or group in the guest.
    #[error("{0}")]
    UnknownUser(String),
    /// A process of this id was started before.
    #[error("{0}")]
    IdInUse(String),
    /// The guest runs as many processes as the agent allows.
    #[error("{0}")]
    Limit(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
    /// The call itself failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl ExecError {
    pub(crate) fn from_failure(failed: StartFailed) -> Self {
        let message = failed.message.clone();
        match failed.kind() {
            StartFailure::NotFound => Self::NotFound(message),
            StartFailure::NotExecutable => Self::NotExecutable(message),
            StartFailure::BadCwd => Self::BadCwd(message),
            StartFailure::UnknownUser => Self::UnknownUser(message),
            StartFailure::IdInUse => Self::IdInUse(message),
            StartFailure::Limit => Self::Limit(message),
            StartFailure::Unspecified | StartFailure::Other => Self::Other(message),
        }
    }

    /// The exit code that a command line gives for this, as docker has them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable(_) | Self::BadCwd(_) | Self::UnknownUser(_) => 126,
            Self::IdInUse(_) | Self::Limit(_) | Self::Other(_) | Self::Call(_) => 125,
        }
    }
}
