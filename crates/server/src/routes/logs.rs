//! What sandboxes wrote.

use axum::extract::{Path, State};
use axum::response::Response;
use cowslip_engine::verbs::LogKind;
use cowslip_model::api::ErrorBody;
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::body;
use crate::error::ApiError;
use crate::extract::Query;

/// Which log, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// The guest's console instead of what the main process wrote.
    #[serde(default)]
    console: bool,
    /// Go on as more is written, until the sandbox runs no more.
    #[serde(default)]
    follow: bool,
}

/// What a sandbox wrote.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/logs", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id"), Which),
    responses(
        (status = OK, description = "the bytes", content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Result<Response, ApiError> {
    let kind = if which.console {
        LogKind::Console
    } else {
        LogKind::Main
    };
    let pieces = api.engine.logs(&name, kind, which.follow).await?;
    let shutdown = api.shutdown.clone();
    let pieces = body::stream(pieces)
        .map(Ok::<_, std::convert::Infallible>)
        .take_until(async move { shutdown.begun().await });
    Ok(body::octets("application/octet-stream", pieces))
}
