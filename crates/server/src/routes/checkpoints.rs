//! Checkpoints, and the sandboxes that are forked from them.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cowslip_model::api::{Checkpoint, CheckpointRequest, ErrorBody, ForkRequest, Sandbox};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, Api};
use crate::error::ApiError;
use crate::extract::{self, Query};

/// `?cascade=true`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Cascade {
    /// Remove what stands on it too.
    #[serde(default)]
    cascade: bool,
}

/// Every checkpoint.
#[utoipa::path(get, path = "/v1/checkpoints", tag = "checkpoints", responses(
    (status = OK, body = Vec<Checkpoint>),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn list(State(api): State<Api>) -> Answer<Vec<Checkpoint>> {
    Ok(Json(api.engine.checkpoints()?))
}

/// Takes a checkpoint of a running sandbox: memory and disk of one instant.
#[utoipa::path(post, path = "/v1/checkpoints", tag = "checkpoints",
    request_body = CheckpointRequest,
    responses((status = CREATED, body = Checkpoint), (status = "default", body = ErrorBody)))]
pub(crate) async fn create(
    State(api): State<Api>,
    extract::Json(request): extract::Json<CheckpointRequest>,
) -> Result<(StatusCode, Json<Checkpoint>), ApiError> {
    Ok((
        StatusCode::CREATED,
        Json(api.engine.create_checkpoint(request).await?),
    ))
}

/// One checkpoint.
#[utoipa::path(get, path = "/v1/checkpoints/{checkpoint}", tag = "checkpoints",
    params(("checkpoint" = String, Path, description = "name or id")),
    responses((status = OK, body = Checkpoint), (status = "default", body = ErrorBody)))]
pub(crate) async fn inspect(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Answer<Checkpoint> {
    Ok(Json(api.engine.checkpoint(&name)?))
}

/// Removes a checkpoint.
#[utoipa::path(delete, path = "/v1/checkpoints/{checkpoint}", tag = "checkpoints",
    params(("checkpoint" = String, Path, description = "name or id"), Cascade),
    responses((status = NO_CONTENT, description = "gone"), (status = "default", body = ErrorBody)))]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(Cascade { cascade }): Query<Cascade>,
) -> Result<StatusCode, ApiError> {
    api.engine.remove_checkpoint(&name, cascade).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes sandboxes from a checkpoint.
#[utoipa::path(post, path = "/v1/checkpoints/{checkpoint}/fork", tag = "checkpoints",
    params(("checkpoint" = String, Path, description = "name or id")),
    request_body = ForkRequest,
    responses((status = CREATED, body = Vec<Sandbox>), (status = "default", body = ErrorBody)))]
pub(crate) async fn fork(
    State(api): State<Api>,
    Path(name): Path<String>,
    extract::Json(request): extract::Json<ForkRequest>,
) -> Result<(StatusCode, Json<Vec<Sandbox>>), ApiError> {
    Ok((
        StatusCode::CREATED,
        Json(api.engine.fork(&name, request).await?),
    ))
}
