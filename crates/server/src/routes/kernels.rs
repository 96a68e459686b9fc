//! Guest kernels.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use cowslip_model::api::{ErrorBody, Kernel, KernelImportRequest};

use super::{Answer, Api};
use crate::error::ApiError;
use crate::extract;
use crate::peer::{Peer, absolute};

/// Every kernel.
#[utoipa::path(get, path = "/v1/kernels", tag = "kernels", responses(
    (status = OK, body = Vec<Kernel>),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn list(State(api): State<Api>) -> Answer<Vec<Kernel>> {
    Ok(Json(api.engine.kernels()?))
}

/// Imports a kernel from files of this host. Only for root and the engine's own user.
#[utoipa::path(post, path = "/v1/kernels", tag = "kernels", request_body = KernelImportRequest,
    responses((status = CREATED, body = Kernel), (status = "default", body = ErrorBody)))]
pub(crate) async fn import(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    extract::Json(request): extract::Json<KernelImportRequest>,
) -> Result<(StatusCode, Json<Kernel>), ApiError> {
    let what = format!("import the kernel \"{}\"", request.name);
    peer.may_name_files(&what)?;
    absolute(&what, request.image.clone())?;
    if let Some(modules) = &request.modules {
        absolute(&what, modules.clone())?;
    }
    Ok((
        StatusCode::CREATED,
        Json(api.engine.import_kernel(request).await?),
    ))
}

/// One kernel.
#[utoipa::path(get, path = "/v1/kernels/{kernel}", tag = "kernels",
    params(("kernel" = String, Path, description = "name or id")),
    responses((status = OK, body = Kernel), (status = "default", body = ErrorBody)))]
pub(crate) async fn inspect(State(api): State<Api>, Path(name): Path<String>) -> Answer<Kernel> {
    Ok(Json(api.engine.kernel(&name)?))
}

/// Removes a kernel that no sandbox uses.
#[utoipa::path(delete, path = "/v1/kernels/{kernel}", tag = "kernels",
    params(("kernel" = String, Path, description = "name or id")),
    responses((status = NO_CONTENT, description = "gone"), (status = "default", body = ErrorBody)))]
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.engine.remove_kernel(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
