//! Templates.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cowslip_model::api::{Diff, ErrorBody, FlattenRequest, Template};

use super::{Answer, Api};
use crate::error::ApiError;
use crate::extract;

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
