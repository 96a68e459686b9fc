//! Sandboxes and the verbs that change their state.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cowslip_model::api::{CreateRequest, ErrorBody, NetworkRules, Sandbox, StopRequest};

use super::{Answer, Api, Force};
use crate::error::ApiError;
use crate::extract::{self, Query};

/// Every sandbox.
#[utoipa::path(get, path = "/v1/sandboxes", tag = "sandboxes", responses(
    (status = OK, body = Vec<Sandbox>),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn list(State(api): State<Api>) -> Answer<Vec<Sandbox>> {
    Ok(Json(api.engine.sandboxes()?))
}

/// Makes a sandbox without starting it.
#[utoipa::path(post, path = "/v1/sandboxes", tag = "sandboxes", request_body = CreateRequest,
    responses((status = CREATED, body = Sandbox), (status = "default", body = ErrorBody)))]
pub(crate) async fn create(
    State(api): State<Api>,
    extract::Json(request): extract::Json<CreateRequest>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    Ok((StatusCode::CREATED, Json(api.engine.create(request).await?)))
}

/// One sandbox.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id")),
    responses((status = OK, body = Sandbox), (status = "default", body = ErrorBody)))]
pub(crate) async fn inspect(State(api): State<Api>, Path(name): Path<String>) -> Answer<Sandbox> {
    Ok(Json(api.engine.inspect(&name).await?))
}

/// Puts a sandbox under other network rules, in place of all that it was under. Connections that are not allowed any more
/// end.
#[utoipa::path(put, path = "/v1/sandboxes/{sandbox}/network", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id")), request_body = NetworkRules,
    responses((status = OK, body = Sandbox), (status = "default", body = ErrorBody)))]
pub(crate) async fn set_network(
    State(api): State<Api>,
    Path(name): Path<String>,
    extract::Json(rules): extract::Json<NetworkRules>,
) -> Answer<Sandbox> {
    Ok(Json(api.engine.set_network(&name, rules).await?))
}

/// Removes a sandbox and all it holds; a running one only with `force`.
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id"), Force),
    responses((status = NO_CONTENT, description = "gone"), (status = "default", body = ErrorBody)))]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Result<StatusCode, ApiError> {
    api.engine.remove(&name, force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Boots a stopped sandbox.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/start", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id")),
    responses((status = OK, body = Sandbox), (status = "default", body = ErrorBody)))]
pub(crate) async fn start(State(api): State<Api>, Path(name): Path<String>) -> Answer<Sandbox> {
    Ok(Json(api.engine.start(&name).await?))
}

/// Shuts a sandbox down.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/stop", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id")),
    request_body = StopRequest,
    responses((status = OK, body = Sandbox), (status = "default", body = ErrorBody)))]
pub(crate) async fn stop(
    State(api): State<Api>,
    Path(name): Path<String>,
    extract::Json(request): extract::Json<StopRequest>,
) -> Answer<Sandbox> {
    Ok(Json(api.engine.stop(&name, request).await?))
}

/// Takes a sandbox to disk and frees its memory.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/pause", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id")),
    responses((status = OK, body = Sandbox), (status = "default", body = ErrorBody)))]
pub(crate) async fn pause(State(api): State<Api>, Path(name): Path<String>) -> Answer<Sandbox> {
    Ok(Json(api.engine.pause(&name).await?))
}

/// Brings a paused sandbox back.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox}/resume", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id")),
    responses((status = OK, body = Sandbox), (status = "default", body = ErrorBody)))]
pub(crate) async fn resume(State(api): State<Api>, Path(name): Path<String>) -> Answer<Sandbox> {
    Ok(Json(api.engine.resume(&name).await?))
}
