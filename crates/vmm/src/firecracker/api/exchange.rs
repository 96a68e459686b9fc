//! One request and its answer, over a connection of their own.

use std::error::Error;
use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::StatusCode;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::words;

/// The longest answer that is read, in bytes. A whole configuration has a few thousand.
const ANSWER_MAX: usize = 256 << 10;
/// Bytes of Firecracker's own words that are shown.
const MESSAGE_MAX: usize = 2 << 10;
const JSON: &str = "application/json";

/// A request that is ready to be sent.
#[derive(Debug)]
pub(super) struct Request {
    method: &'static str,
    path: String,
    body: Bytes,
}

impl Request {
    pub(super) fn plain(method: &'static str, path: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            body: Bytes::new(),
        }
    }

    pub(super) fn with_body(
        method: &'static str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Self, ApiError> {
        let mut request = Self::plain(method, path);
        request.body = serde_json::to_vec(body)
            .map_err(|source| ApiError::Unsendable {
                request: request.label(),
                source,
            })?
            .into();
        Ok(request)
    }

    /// How errors name it.
    pub(super) fn label(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    request: String,
    status: StatusCode,
    body: Bytes,
}

/// What Firecracker says when it refuses.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

impl Answer {
    /// Turns a refusal into an error.
    pub(super) fn accepted(self) -> Result<Self, ApiError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let status = self.status.as_u16();
        let message = match serde_json::from_slice::<Fault>(&self.body) {
            Ok(fault) => words::harmless(fault.fault_message.as_bytes(), MESSAGE_MAX),
            // Parts of its HTTP server answer in plain text.
            Err(_) => words::harmless(&self.body, MESSAGE_MAX),
        };
        Err(ApiError::Refused {
            request: self.request,
            status,
            message: message
                .unwrap_or_else(|| format!("it was refused with status {status}, without a word")),
        })
    }

    /// The answer's content.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::Unreadable {
            request: self.request.clone(),
            why: error.to_string(),
        })
    }
}

/// Sends `request` to whoever listens at `socket`. Waits as long as the connection stands.
pub(super) async fn run(socket: &Path, request: Request) -> Result<Answer, ApiError> {
    let label = request.label();
    let closed = |why: String| ApiError::closed(label.clone(), why);
    let stream = crate::firecracker::socket::connect(socket)
        .await
        .map_err(|error| closed(format!("connect to \"{}\": {error}", socket.display())))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| closed(chain(&error)))?;
    let message = message(request).map_err(|error| closed(chain(&error)))?;
    let answer = async {
        let response = sender.send_request(message).await.map_err(|e| chain(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX);
        let body = body.collect().await.map_err(|e| chain(e.as_ref()))?;
        Ok((status, body.to_bytes()))
    };
    let mut answer = pin!(answer);
    let answered: Result<_, String> = tokio::select! {
        biased;
        answered = &mut answer => answered,
        // The answer may be whole already; if it is not, it fails with the connection's error.
        _ = connection => answer.await,
    };
    let (status, body) = answered.map_err(closed)?;
    Ok(Answer {
        request: label,
        status,
        body,
    })
}

fn message(request: Request) -> Result<hyper::Request<Full<Bytes>>, hyper::http::Error> {
    let mut message = hyper::Request::builder()
        .method(request.method)
        .uri(request.path)
        .header(HOST, "localhost")
        .header(ACCEPT, JSON);
    if !request.body.is_empty() {
        message = message.header(CONTENT_TYPE, JSON);
    }
    message.body(Full::new(request.body))
}

/// An error with its causes, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
