//! One request and its answer, as JSON.

use cowslip_model::api::{ErrorBody, ErrorCode};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::body::{self, Body};
use super::{Client, VERSION, VERSION_HEADER};
use crate::exit::Failure;

/// The longest JSON answer that is believed, in bytes.
const ANSWER_MAX: usize = 64 << 20;
/// The longest error answer, in bytes.
const ERROR_MAX: usize = 1 << 20;

/// Everything but what never means anything in a path or a query.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// The path and query of a request; whatever a user typed stays one segment or one value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    text: String,
    queried: bool,
}

impl Path {
    /// `/v1/<collection>`.
    pub(crate) fn to(collection: &str) -> Self {
        Self {
            text: format!("/v1/{collection}"),
            queried: false,
        }
    }

    /// One more segment, as typed.
    pub(crate) fn segment(mut self, segment: &str) -> Self {
        self.text.push('/');
        self.text.extend(utf8_percent_encode(segment, ENCODED));
        self
    }

    /// One more key of the query, as typed.
    pub(crate) fn query(mut self, key: &str, value: &str) -> Self {
        self.text.push(if self.queried { '&' } else { '?' });
        self.queried = true;
        self.text.push_str(key);
        self.text.push('=');
        self.text.extend(utf8_percent_encode(value, ENCODED));
        self
    }

    /// The key, when it is true: false is what a query without it means.
    pub(crate) fn flag(self, key: &str, value: bool) -> Self {
        if value { self.query(key, "true") } else { self }
    }

    /// The path as it is sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// An answer, and whether it came on a connection that still takes what we upload.
pub(super) type Answer = Response<Incoming>;

impl Client {
    /// The object at `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: Path) -> Result<T, Failure> {
        let answer = self.send(Method::GET, &path, body::empty()).await?;
        self.json(answer).await
    }

    /// Posts `request` and gives back the answer.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: Path,
        request: &impl Serialize,
    ) -> Result<T, Failure> {
        let answer = self.send(Method::POST, &path, body::json(request)?).await?;
        self.json(answer).await
    }

    /// Puts `request` and gives back the answer.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: Path,
        request: &impl Serialize,
    ) -> Result<T, Failure> {
        let answer = self.send(Method::PUT, &path, body::json(request)?).await?;
        self.json(answer).await
    }

    /// Deletes the object at `path`.
    pub(crate) async fn delete(&self, path: Path) -> Result<(), Failure> {
        self.send(Method::DELETE, &path, body::empty())
            .await
            .map(drop)
    }

    /// The object at `path`, of an engine that runs already; `None` when none runs.
    pub(crate) async fn get_running<T: DeserializeOwned>(
        &self,
        path: Path,
    ) -> Result<Option<T>, Failure> {
        let Some(stream) = self.connect_running().await? else {
            return Ok(None);
        };
        let answer = self
            .send_on(stream, Method::GET, &path, body::empty())
            .await?;
        self.json(answer).await.map(Some)
    }

    /// Posts to an engine that runs already; false when none runs.
    pub(crate) async fn post_running(&self, path: Path) -> Result<bool, Failure> {
        let Some(stream) = self.connect_running().await? else {
            return Ok(false);
        };
        self.send_on(stream, Method::POST, &path, body::empty())
            .await
            .map(|_| true)
    }

    /// Sends a request; an error answer becomes a failure.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &Path,
        body: Body,
    ) -> Result<Answer, Failure> {
        let stream = self.connect().await?;
        self.send_on(stream, method, path, body).await
    }

    async fn send_on(
        &self,
        stream: UnixStream,
        method: Method,
        path: &Path,
        body: Body,
    ) -> Result<Answer, Failure> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream))
                .await
                .map_err(|error| self.broken(error))?;
        // The connection ends with the answer's body; its errors surface there.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path.as_str())
            .header(http::header::HOST, "cowslip")
            .header(http::header::CONTENT_TYPE, body.content_type)
            .header(VERSION_HEADER, VERSION)
            .body(body)
            .map_err(|error| Failure::usage(format!("make the request: {error}")))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(error))?;
        self.compare_version(answer.headers());
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(refusal(answer).await)
        }
    }

    async fn json<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, Failure> {
        let bytes = Limited::new(answer.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|error| self.broken(error))?
            .to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))
    }
}

/// An answer that is not what the API promises.
pub(super) fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::new(
        ErrorCode::Internal,
        format!("read the engine's answer: {error}"),
    )
    .hint("the engine may be of another version: \"cowslip version\" shows both")
}

/// Reads an error answer: one line, after which the engine may keep the connection open to take in
/// what we are still sending.
async fn refusal(answer: Answer) -> Failure {
    let status = answer.status();
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if text.ends_with(b"\n") || text.len() > ERROR_MAX {
            break;
        }
    }
    error_of(status, &text)
}

/// The failure that an error answer stands for.
pub(super) fn error_of(status: StatusCode, text: &[u8]) -> Failure {
    serde_json::from_slice::<ErrorBody>(text).map_or_else(
        |_| {
            Failure::new(
                ErrorCode::Internal,
                format!("the engine answered \"{status}\""),
            )
            .hint("the engine may be of another version: \"cowslip version\" shows both")
        },
        Failure::from,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_stays_one_segment() {
        // covers R63
        let path = Path::to("sandboxes")
            .segment("../../etc?x#y")
            .query("path", "/a b&c=d");
        assert_eq!(
            path.as_str(),
            "/v1/sandboxes/%2E%2E%2F%2E%2E%2Fetc%3Fx%23y?path=%2Fa%20b%26c%3Dd"
        );
        assert_eq!(Path::to("x").flag("force", false).as_str(), "/v1/x");
        assert_eq!(
            Path::to("x").query("a", "1").flag("b", true).as_str(),
            "/v1/x?a=1&b=true"
        );
    }
}
