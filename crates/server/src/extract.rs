//! What routes take from requests, with errors in the API's own form.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::StatusCode;
use cowslip_model::api::ErrorCode;

use crate::error::ApiError;

/// The longest JSON request, in bytes.
pub(crate) const JSON_MAX: usize = 1 << 20;

/// A JSON body.
#[derive(Debug, FromRequest)]
#[from_request(via(axum::Json), rejection(ApiError))]
pub(crate) struct Json<T>(pub(crate) T);

/// A query.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(crate) struct Query<T>(pub(crate) T);

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let error = Self::new(
            ErrorCode::Invalid,
            format!("read the request: {}", rejection.body_text()),
        );
        match rejection.status() {
            status @ (StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNSUPPORTED_MEDIA_TYPE) => {
                error.status(status)
            }
            _ => error,
        }
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(
            ErrorCode::Invalid,
            format!("read the query: {}", rejection.body_text()),
        )
    }
}
