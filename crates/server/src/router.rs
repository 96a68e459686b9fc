//! The routes put together, and the OpenAPI document that they make.

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::{Router, middleware};
use cowslip_model::api::ErrorCode;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::extract::JSON_MAX;
use crate::routes::{
    Api, archive, checkpoints, engine, events, imports, kernels, logs, sandboxes, sessions,
    templates,
};
use crate::version;

/// The document's head.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "cowslip",
        description = "microVM sandboxes. Served on a unix socket. Every error answer is an \
                       `ErrorBody`; names, ids and the start of an id all name an object. \
                       Exec, run and forward sessions are WebSockets: the client's first text message is the \
                       request, later text messages are `ClientMessage` and `ServerMessage`, and a \
                       binary message begins with the number of its channel (0 standard input, 1 \
                       standard output, 2 standard error).",
        license(name = "Apache-2.0 OR MIT"),
    ),
    components(schemas(
        cowslip_model::api::ErrorBody,
        cowslip_model::api::Event,
        cowslip_model::api::ImportMessage,
        cowslip_model::api::ExecRequest,
        cowslip_model::api::BuildStepRequest,
        cowslip_model::api::RunRequest,
        cowslip_model::api::ForwardRequest,
        cowslip_model::api::ClientMessage,
        cowslip_model::api::ServerMessage,
    ))
)]
struct Document;

fn documented() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(engine::info))
        .routes(routes!(engine::doctor))
        .routes(routes!(engine::version))
        .routes(routes!(engine::openapi))
        .routes(routes!(engine::gc))
        .routes(routes!(engine::shutdown))
        .routes(routes!(events::events))
        .routes(routes!(templates::list, imports::bytes))
        .routes(routes!(imports::place))
        .routes(routes!(templates::inspect, templates::remove))
        .routes(routes!(templates::export))
        .routes(routes!(templates::flatten))
        .routes(routes!(templates::diff))
        .routes(routes!(kernels::list, kernels::import))
        .routes(routes!(kernels::inspect, kernels::remove))
        .routes(routes!(sandboxes::list, sandboxes::create))
        .routes(routes!(sandboxes::inspect, sandboxes::remove))
        .routes(routes!(sandboxes::start))
        .routes(routes!(sandboxes::stop))
        .routes(routes!(sandboxes::set_network))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(logs::logs))
        .routes(routes!(sessions::exec))
        .routes(routes!(sessions::forward))
        .routes(routes!(sessions::run))
        .routes(routes!(sessions::build_step))
        .routes(routes!(archive::read, archive::write))
        .routes(routes!(checkpoints::list, checkpoints::create))
        .routes(routes!(checkpoints::inspect, checkpoints::remove))
        .routes(routes!(checkpoints::fork))
}

/// The OpenAPI document, as it is checked in.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

/// Everything that is served.
pub(crate) fn router(api: Api) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(async || ApiError::new(ErrorCode::NotFound, "there is no such route"))
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorCode::Invalid, "this route does not have that method")
                .status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(DefaultBodyLimit::max(JSON_MAX))
        .layer(middleware::from_fn(version::compare))
        .with_state(api)
}
