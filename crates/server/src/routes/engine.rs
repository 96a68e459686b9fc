//! The engine itself.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use cowslip_model::api::{DoctorReport, ErrorBody, GcReport, Info};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Answer, Api};
use crate::extract::Query;
use crate::version::VERSION;

/// The engine's version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Version {
    /// As `0.1.0`.
    version: &'static str,
}

/// What the engine is and uses.
#[utoipa::path(get, path = "/v1/info", tag = "engine", responses(
    (status = OK, body = Info),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn info(State(api): State<Api>) -> Answer<Info> {
    Ok(Json(api.engine.info()?))
}

/// What this host can do, what is missing, and where ledger and host differ.
#[utoipa::path(get, path = "/v1/doctor", tag = "engine", responses(
    (status = OK, body = DoctorReport),
))]
pub(crate) async fn doctor(State(api): State<Api>) -> Json<DoctorReport> {
    Json(api.engine.doctor().await)
}

/// The engine's version.
#[utoipa::path(get, path = "/v1/version", tag = "engine", responses(
    (status = OK, body = Version),
))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: VERSION })
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "engine", responses(
    (status = OK, description = "an OpenAPI document", content_type = "application/json"),
))]
pub(crate) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(crate::router::openapi())
}

/// What is released beside what nothing owns.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Collected {
    /// All downloads of images that no import uses now, and not only what the cache may not keep.
    #[serde(default)]
    images: bool,
}

/// Releases what no sandbox owns.
#[utoipa::path(post, path = "/v1/gc", tag = "engine", params(Collected), responses(
    (status = OK, body = GcReport),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn gc(State(api): State<Api>, Query(query): Query<Collected>) -> Answer<GcReport> {
    Ok(Json(api.engine.gc(query.images).await?))
}

/// Ends the engine when what is under way is finished. Sandboxes keep running.
#[utoipa::path(post, path = "/v1/shutdown", tag = "engine", responses(
    (status = ACCEPTED, description = "it has begun"),
))]
pub(crate) async fn shutdown(State(api): State<Api>) -> StatusCode {
    api.shutdown.begin("a request");
    StatusCode::ACCEPTED
}
