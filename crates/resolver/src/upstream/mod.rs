//! The name servers of the host.

mod config;
mod exchange;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::config::Servers;
use self::config::Watched;
use self::exchange::exchange;
use crate::answer::Answer;

/// How long a question may take, whatever the number of servers; the guest has asked again by then, and again.
const QUESTION_TIME: Duration = Duration::from_secs(10);
/// Questions under way for all sandboxes: each is a socket. A sandbox has a small part of them.
const QUESTIONS_MAX: usize = 1024;

/// Whom the engine asks for names. Clones are the same one, for all sandboxes.
#[derive(Debug, Clone)]
pub struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    under_way: Semaphore,
}

#[derive(Debug)]
enum Source {
    Fixed(Arc<Servers>),
    File(Watched),
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// The file that names the servers.
    #[error("cannot read \"{}\"; it names the servers to ask", path.display())]
    Servers {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A socket, or a server that is not there.
    #[error("cannot ask {server}; check that it is reachable")]
    Ask {
        /// Whom.
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// Silence.
    #[error("{server} did not answer in time")]
    Silent {
        /// Who.
        server: SocketAddr,
    },
    /// An answer that is none.
    #[error("{server} answered {code}")]
    Code {
        /// Who.
        server: SocketAddr,
        /// With what.
        code: ResponseCode,
    },
    /// Silence of all of them.
    #[error("no server answered within {} seconds", QUESTION_TIME.as_secs())]
    Time,
    /// There is nobody to ask.
    #[error("there is no server to ask")]
    Nobody,
}

impl Upstream {
    /// These servers.
    #[must_use]
    pub fn new(servers: Servers) -> Self {
        Self::from(Source::Fixed(Arc::new(servers)))
    }

    /// Those that a file like `/etc/resolv.conf` names, as it is when a question is asked.
    #[must_use]
    pub fn of_file(path: impl Into<PathBuf>) -> Self {
        Self::from(Source::File(Watched::new(path.into())))
    }

    fn from(source: Source) -> Self {
        let under_way = Semaphore::new(QUESTIONS_MAX);
        Self(Arc::new(Inner { source, under_way }))
    }

    /// Asks one server after the other, and all of them again, until one knows.
    pub(crate) async fn ask(&self, query: &Query) -> Result<Answer, UpstreamError> {
        match timeout(QUESTION_TIME, self.ask_all(query)).await {
            Ok(answer) => answer,
            Err(_) => Err(UpstreamError::Time),
        }
    }

    async fn ask_all(&self, query: &Query) -> Result<Answer, UpstreamError> {
        // It is never closed.
        let _permit = self.0.under_way.acquire().await;
        let servers = match &self.0.source {
            Source::Fixed(servers) => Arc::clone(servers),
            Source::File(watched) => watched.servers().await?,
        };
        let mut failed = UpstreamError::Nobody;
        for _ in 0..servers.attempts {
            for server in &servers.addresses {
                match exchange(*server, query, servers.timeout).await {
                    Ok(message) => match message.response_code {
                        ResponseCode::NoError | ResponseCode::NXDomain => {
                            return Ok(Answer::of(&message, query));
                        }
                        code => {
                            let server = *server;
                            failed = UpstreamError::Code { server, code };
                        }
                    },
                    Err(error) => failed = error,
                }
            }
        }
        Err(failed)
    }
}
