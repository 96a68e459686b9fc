//! Templates.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cowslip_model::api::{Diff, ErrorBody, ExportFormat, FlattenRequest, Template};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, Api};
use crate::error::ApiError;
use crate::{body, extract};

/// Every template.
#[utoipa::path(get, path = "/v1/templates", tag = "templates", responses(
    (status = OK, body = Vec<Template>),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn list(State(api): State<Api>) -> Answer<Vec<Template>> {
    Ok(Json(api.engine.templates()?))
}

/// One template.
#[utoipa::path(get, path = "/v1/templates/{template}", tag = "templates",
    params(("template" = String, Path, description = "name or id")),
    responses((status = OK, body = Template), (status = "default", body = ErrorBody)))]
pub(crate) async fn inspect(State(api): State<Api>, Path(name): Path<String>) -> Answer<Template> {
    Ok(Json(api.engine.template(&name)?))
}

/// As what.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct As {
    /// None: a tar of the root file system.
    #[serde(default)]
    format: ExportFormat,
    /// What the image in an archive is called; none: `latest`.
    tag: Option<String>,
}

/// A template as a file. An answer that breaks off is no archive.
#[utoipa::path(get, path = "/v1/templates/{template}/export", tag = "templates",
    params(("template" = String, Path, description = "name or id"), As),
    responses(
        (status = OK, description = "a tar", content_type = "application/x-tar"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn export(
    State(api): State<Api>,
    Path(name): Path<String>,
    extract::Query(wanted): extract::Query<As>,
) -> Result<Response, ApiError> {
    let exported = api.engine.export(&name, wanted.format, wanted.tag);
    let (first, rest) = exported.await?;
    let first = stream::iter(first.map(Ok));
    let pieces = first
        .chain(body::stream(rest))
        .map(|piece| piece.inspect_err(|error| tracing::warn!(%error, "an export broke off")));
    Ok(body::octets("application/x-tar", pieces))
}

/// Removes a template that nothing stands on.
#[utoipa::path(delete, path = "/v1/templates/{template}", tag = "templates",
    params(("template" = String, Path, description = "name or id")),
    responses((status = NO_CONTENT, description = "gone"), (status = "default", body = ErrorBody)))]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.engine.remove_template(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a template of the disk of a sandbox or a checkpoint. A running sandbox is synced and runs on.
#[utoipa::path(post, path = "/v1/templates/flatten", tag = "templates",
    request_body = FlattenRequest,
    responses((status = CREATED, body = Template), (status = "default", body = ErrorBody)))]
pub(crate) async fn flatten(
    State(api): State<Api>,
    extract::Json(request): extract::Json<FlattenRequest>,
) -> Result<(StatusCode, Json<Template>), ApiError> {
    Ok((
        StatusCode::CREATED,
        Json(api.engine.flatten(request).await?),
    ))
}

/// How much each layer of the disk of a sandbox or a checkpoint changed.
#[utoipa::path(get, path = "/v1/diff/{source}", tag = "templates",
    params(("source" = String, Path, description = "name or id of a sandbox or a checkpoint")),
    responses((status = OK, body = Diff), (status = "default", body = ErrorBody)))]
pub(crate) async fn diff(State(api): State<Api>, Path(source): Path<String>) -> Answer<Diff> {
    Ok(Json(api.engine.diff(&source).await?))
}
