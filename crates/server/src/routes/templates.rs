//! Templates.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cowslip_model::api::{ErrorBody, Template};

use super::{Answer, Api};
use crate::error::ApiError;

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
