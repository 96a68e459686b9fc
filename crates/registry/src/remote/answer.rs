//! What answers mean, and which failures may pass.

use std::error::Error;
use std::io;
use std::time::Duration;

use reqwest::Response;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, RETRY_AFTER};
use serde::Deserialize;

use super::{Remote, header};
use crate::error::{PullError, show};

/// No more of a refusal is read, in bytes.
const MAX_REFUSAL: u64 = 64 << 10;

/// One attempt that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Box<PullError>,
    /// Whether it may be tried again, and after how long, where the registry says so.
    pub(crate) again: Option<Option<Duration>>,
}

impl Failure {
    /// Another attempt would end the same way.
    pub(crate) fn last(error: PullError) -> Self {
        Self {
            error: Box::new(error),
            again: None,
        }
    }

    /// It may pass.
    pub(crate) fn passing(error: PullError) -> Self {
        Self {
            error: Box::new(error),
            again: Some(None),
        }
    }

    /// Whether the registry answered, but not with what was asked for.
    pub(crate) fn is_refusal(&self) -> bool {
        let refusal = matches!(
            *self.error,
            PullError::NotFound { .. } | PullError::Status { .. }
        );
        self.again.is_none() && refusal
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::last(error)
    }
}

/// What a registry writes when it refuses.
#[derive(Deserialize)]
struct Refusal {
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Makes an error of an answer that is none to what was asked.
pub(super) async fn refused(
    remote: &Remote,
    response: Response,
    is_own: bool,
    what: &str,
) -> Failure {
    let status = response.status().as_u16();
    let retry_after = header(response.headers(), RETRY_AFTER.as_str()).map(show);
    // Who we were sent to may be any host at all; only the registry is quoted.
    let message = match is_own {
        true => reasons(response).await,
        false => String::new(),
    };
    let registry = remote.name();
    let what = what.to_owned();
    let wait = retry_after
        .as_deref()
        .and_then(|text| text.parse().ok())
        .map(Duration::from_secs);
    let error = match status {
        401 | 403 if is_own => PullError::Unauthorized {
            registry,
            what,
            who: remote.auth.who(),
            message,
        },
        404 => PullError::NotFound {
            registry,
            what,
            message,
        },
        429 => PullError::RateLimited {
            registry,
            retry_after,
            message,
        },
        _ => PullError::Status {
            registry,
            what,
            status,
            message,
        },
    };
    let again = matches!(status, 408 | 429 | 500..=599).then_some(wait);
    Failure {
        error: Box::new(error),
        again,
    }
}

async fn reasons(response: Response) -> String {
    let bytes = take(response, MAX_REFUSAL)
        .await
        .ok()
        .flatten()
        .unwrap_or_default();
    let Ok(refusal) = serde_json::from_slice::<Refusal>(&bytes) else {
        return String::new();
    };
    let mut reasons = refusal
        .errors
        .into_iter()
        .map(|reason| match reason.message.is_empty() {
            true => reason.code,
            false => reason.message,
        });
    show(&reasons.next().unwrap_or_default())
}

/// Reads a whole answer that has a bound.
pub(super) async fn read_bounded(
    remote: &Remote,
    response: Response,
    limit: u64,
    what: &str,
) -> Result<Vec<u8>, Failure> {
    match take(response, limit).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Failure::last(PullError::TooLong {
            registry: remote.name(),
            what: what.to_owned(),
            limit,
        })),
        Err(error) => Err(remote.broken(error, what)),
    }
}

/// `None` when there is more.
async fn take(mut response: Response, limit: u64) -> reqwest::Result<Option<Vec<u8>>> {
    if content_length(response.headers()).is_some_and(|length| length > limit) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, CONTENT_LENGTH.as_str())?.parse().ok()
}

/// Where a part begins.
pub(crate) fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = header(headers, CONTENT_RANGE.as_str())?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}

/// What became of a request without an answer, or with half of one.
pub(super) fn broken(registry: String, error: reqwest::Error, what: &str) -> Failure {
    // Signed addresses are secrets.
    let error = error.without_url();
    let causes = Causes::of(&error);
    let (connecting, senseless) = (
        error.is_connect(),
        error.is_builder() || error.is_redirect(),
    );
    let source = Box::new(error);
    if causes.tls {
        return Failure::last(PullError::Tls { registry, source });
    }
    if connecting && !causes.reset {
        return Failure::last(PullError::Unreachable { registry, source });
    }
    if senseless {
        let why = source.to_string();
        return Failure::last(PullError::Protocol { registry, why });
    }
    Failure::passing(PullError::Broken {
        registry,
        what: what.to_owned(),
        source,
    })
}

/// What is at the bottom of an error.
#[derive(Default)]
struct Causes {
    tls: bool,
    reset: bool,
}

impl Causes {
    fn of(error: &(dyn Error + 'static)) -> Self {
        let mut causes = Self::default();
        let mut next = Some(error);
        while let Some(error) = next {
            causes.tls |= error.is::<rustls::Error>();
            next = error.source();
            if let Some(error) = error.downcast_ref::<io::Error>() {
                causes.reset |= error.kind() == io::ErrorKind::ConnectionReset;
                // Such an error passes over what it was made of.
                if let Some(inner) = error.get_ref() {
                    next = Some(inner);
                }
            }
        }
        causes
    }
}
