//! Exec, run and forward sessions.

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use cowslip_engine::Session;
use cowslip_model::api::{
    BuildStepRequest, ErrorBody, ErrorCode, ExecRequest, ForwardRequest, RunRequest,
};

use super::Api;
use crate::error::ApiError;
use crate::session::{self, MESSAGE_MAX};

/// A process in a running sandbox. A WebSocket; the first text message is an `ExecRequest`.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/exec", tag = "sessions",
    params(("sandbox" = String, Path, description = "name or id")),
    responses(
        (status = SWITCHING_PROTOCOLS, description = "a session"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn exec(
    State(api): State<Api>,
    Path(name): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    open(
        api,
        upgrade,
        async move |api, request: ExecRequest, session| {
            api.engine.exec(&name, request, session).await;
        },
    )
}

/// A connection to a port of a running sandbox's loopback. A WebSocket; the first text message is a `ForwardRequest`,
/// and the first answer `connected` or `failed`. A client that goes away without `stdin_end` breaks the connection off.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/forward", tag = "sessions",
    params(("sandbox" = String, Path, description = "name or id")),
    responses(
        (status = SWITCHING_PROTOCOLS, description = "a session"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn forward(
    State(api): State<Api>,
    Path(name): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    open(
        api,
        upgrade,
        async move |api, request: ForwardRequest, session| {
            api.engine.forward(&name, request, session).await;
        },
    )
}

/// A new sandbox and a process in it. A WebSocket; the first text message is a `RunRequest`.
#[utoipa::path(get, path = "/v1/run", tag = "sessions", responses(
    (status = SWITCHING_PROTOCOLS, description = "a session"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn run(
    State(api): State<Api>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    open(
        api,
        upgrade,
        async move |api, request: RunRequest, session| {
            api.engine.run(request, session).await;
        },
    )
}

/// One step of a build. A WebSocket; the first text message is a `BuildStepRequest`. A step that unpacks reads its
/// tar as standard input, once it has started. After exit code 0 its checkpoint is there.
#[utoipa::path(get, path = "/v1/build/step", tag = "sessions", responses(
    (status = SWITCHING_PROTOCOLS, description = "a session"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn build_step(
    State(api): State<Api>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    open(
        api,
        upgrade,
        async move |api, request: BuildStepRequest, session| {
            api.engine.build_step(request, session).await;
        },
    )
}

/// Opens a session. The engine's part of it is seen to its end, whatever becomes of the client.
fn open<T, F>(
    api: Api,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    verb: impl FnOnce(Api, T, Session) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    T: serde::de::DeserializeOwned + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let upgrade = upgrade.map_err(|rejection| {
        ApiError::new(
            ErrorCode::Invalid,
            format!("open a session: {}", rejection.body_text()),
        )
        .status(rejection.status())
    })?;
    let counted = api.activity.enter();
    let tracked = api.sessions.token();
    let attend = async move |mut socket: WebSocket| {
        let _held = (counted, tracked);
        match session::request::<T>(&mut socket).await {
            Ok(request) => {
                let (session, client) = Session::pair();
                let shutdown = api.shutdown.clone();
                let carry = session::carry(socket, client, &shutdown);
                tokio::join!(verb(api, request, session), carry);
            }
            Err(error) => session::refuse(socket, error).await,
        }
    };
    Ok(upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .on_upgrade(attend))
}
