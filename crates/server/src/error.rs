//! Errors as answers: always an `ErrorBody`, with the status that its code stands for.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use cowslip_engine::EngineError;
use cowslip_model::api::{ErrorBody, ErrorCode};

/// An error answer.
#[derive(Debug)]
pub(crate) struct ApiError {
    body: ErrorBody,
    status: StatusCode,
}

impl ApiError {
    /// An error of this kind.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ErrorBody {
            code,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        }
        .into()
    }

    /// With the next step.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    /// With another status than the code's.
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Its parts.
    pub(crate) fn into_parts(self) -> (StatusCode, ErrorBody) {
        (self.status, self.body)
    }
}

/// The status that a code stands for.
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Invalid => StatusCode::BAD_REQUEST,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Conflict | ErrorCode::Exists => StatusCode::CONFLICT,
        ErrorCode::CommandNotFound | ErrorCode::CommandNotExecutable => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        ErrorCode::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<ErrorBody> for ApiError {
    fn from(body: ErrorBody) -> Self {
        Self {
            status: status_of(body.code),
            body,
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        error.body().into()
    }
}

/// A value as a line of JSON. The API's types always encode; should one not, the line says so.
pub(crate) fn json_line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "encode an answer");
        br#"{"code":"internal","message":"encode the answer"}"#.to_vec()
    });
    line.push(b'\n');
    line
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        // The newline tells a client that is still sending that this is all there is to read.
        (self.status, kind, json_line(&self.body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status() {
        let status = |code| ApiError::new(code, "").status.as_u16();
        assert_eq!(status(ErrorCode::Invalid), 400);
        assert_eq!(status(ErrorCode::Forbidden), 403);
        assert_eq!(status(ErrorCode::NotFound), 404);
        assert_eq!(status(ErrorCode::Conflict), 409);
        assert_eq!(status(ErrorCode::Exists), 409);
        assert_eq!(status(ErrorCode::CommandNotFound), 422);
        assert_eq!(status(ErrorCode::CommandNotExecutable), 422);
        assert_eq!(status(ErrorCode::TimedOut), 504);
        assert_eq!(status(ErrorCode::NoSpace), 507);
        assert_eq!(status(ErrorCode::Unsupported), 501);
        assert_eq!(status(ErrorCode::Internal), 500);
    }
}
