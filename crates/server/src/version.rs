//! Versions in every request and answer, so that a command and an engine that do not fit say so.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cowslip_model::api::ErrorCode;

use crate::error::ApiError;

/// Names the version of whoever speaks.
pub const VERSION_HEADER: &str = "cowslip-version";

/// This engine's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a client of any version may ask: who we are, and that we end.
const ALWAYS: [&str; 2] = ["/v1/version", "/v1/shutdown"];

/// Refuses clients of another series, and names our version in every answer.
pub(crate) async fn compare(request: Request, next: Next) -> Response {
    let theirs = request
        .headers()
        .get(VERSION_HEADER)
        .and_then(|value| value.to_str().ok());
    let mut answer = match theirs {
        Some(theirs)
            if series(theirs) != series(VERSION) && !ALWAYS.contains(&request.uri().path()) =>
        {
            ApiError::new(
                ErrorCode::Conflict,
                format!("the engine has version {VERSION} and this command {theirs}"),
            )
            .hint("end the engine with: cowslip serve --stop (sandboxes keep running)")
            .into_response()
        }
        _ => next.run(request).await,
    };
    answer
        .headers_mut()
        .insert(VERSION_HEADER, HeaderValue::from_static(VERSION));
    answer
}

/// The part of a version within which nothing is taken away: `1`, and before that `0.7`.
fn series(version: &str) -> (&str, &str) {
    let mut parts = version.split('.');
    let major = parts.next().unwrap_or_default();
    let minor = if major == "0" {
        parts.next().unwrap_or_default()
    } else {
        ""
    };
    (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_what_stays_compatible() {
        assert_eq!(series("0.1.0"), series("0.1.9"));
        assert_ne!(series("0.1.0"), series("0.2.0"));
        assert_eq!(series("1.2.0"), series("1.9.3"));
        assert_ne!(series("1.2.0"), series("2.0.0"));
    }
}
