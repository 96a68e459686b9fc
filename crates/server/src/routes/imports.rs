//! Imports of templates: the answer's lines say how far the import is, and last how it ended.
//!
//! An import that fails before its first line is an error answer like any other. A client that goes
//! away closes the lines, which gives the import up.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cowslip_engine::EngineError;
use cowslip_model::Name;
use cowslip_model::api::{DirectoryImportRequest, ErrorBody, ImportMessage};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use utoipa::IntoParams;

use super::Api;
use crate::body::{self, Upload, UploadReader};
use crate::error::ApiError;
use crate::extract::{Json, Query};
use crate::peer::{Peer, absolute};

/// Lines that may wait.
const LINES: usize = 32;

/// What a tar becomes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Named {
    /// The template's name.
    name: Name,
}

/// Imports a template from the tar in the request's body: plain, gzip or zstd.
#[utoipa::path(post, path = "/v1/templates", tag = "templates", params(Named),
    request_body(content_type = "application/x-tar", description = "plain, gzip or zstd"),
    responses(
        (status = OK, body = ImportMessage, content_type = "application/x-ndjson",
         description = "one message a line; the last one is done or failed"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn tar(
    State(api): State<Api>,
    query: Result<Query<Named>, ApiError>,
    body: Body,
) -> Response {
    let Upload { pieces, intake } = body::upload(body);
    let name = match query {
        Ok(Query(Named { name })) => name,
        Err(error) => {
            drop(pieces);
            return refused(error, intake);
        }
    };
    let (progress, lines) = mpsc::channel(LINES);
    let engine = api.engine.clone();
    let reader = UploadReader::new(pieces);
    let import = async move { engine.import_tar(name, reader, progress).await };
    answer(&api, import, lines, Some(intake)).await
}

/// Imports a template from a directory of this host. Only for root and the engine's own user.
#[utoipa::path(post, path = "/v1/templates/directory", tag = "templates",
    request_body = DirectoryImportRequest,
    responses(
        (status = OK, body = ImportMessage, content_type = "application/x-ndjson",
         description = "one message a line; the last one is done or failed"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn directory(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<DirectoryImportRequest>,
) -> Result<Response, ApiError> {
    let what = format!("import the template \"{}\"", request.name);
    peer.may_name_files(&what).map_err(|error| {
        error.hint(format!(
            "send it as a tar: tar -C DIRECTORY -c . | cowslip template import {} -",
            request.name
        ))
    })?;
    let path = absolute(&what, request.path)?;
    let (progress, lines) = mpsc::channel(LINES);
    let engine = api.engine.clone();
    let import = async move { engine.import_directory(request.name, path, progress).await };
    Ok(answer(&api, import, lines, None).await)
}

/// Runs an import in a task of its own and answers with its lines.
async fn answer(
    api: &Api,
    import: impl Future<Output = Result<ImportMessage, EngineError>> + Send + 'static,
    mut lines: mpsc::Receiver<ImportMessage>,
    intake: Option<JoinHandle<()>>,
) -> Response {
    let client = api.activity.enter();
    let import = api.sessions.spawn(async move {
        let _client = client;
        import.await
    });
    // The import drops its end of the lines when it is over, so a first line comes, or it has ended.
    let Some(first) = lines.recv().await else {
        return match last(import).await {
            Ok(message) => body::lines(stream::iter([body::line(&message)])),
            Err(error) => match intake {
                Some(intake) => refused(error, intake),
                None => error.into_response(),
            },
        };
    };
    let rest = stream::once(async move { last(import).await }).map(|result| {
        result.unwrap_or_else(|error| ImportMessage::Failed {
            error: error.into_parts().1,
        })
    });
    let messages = stream::iter([first]).chain(body::stream(lines)).chain(rest);
    body::lines(
        messages
            .map(|message| body::line(&message))
            .chain(silence(intake)),
    )
}

async fn last(
    import: JoinHandle<Result<ImportMessage, EngineError>>,
) -> Result<ImportMessage, ApiError> {
    match import.await {
        Ok(result) => Ok(result?),
        Err(error) => {
            let code = cowslip_model::api::ErrorCode::Internal;
            Err(ApiError::new(code, format!("the import died: {error}")))
        }
    }
}

/// An error answer to a client that may still be sending.
pub(crate) fn refused(error: ApiError, intake: JoinHandle<()>) -> Response {
    let (status, error) = error.into_parts();
    let line = stream::iter([body::line(&error)]);
    let mut response = body::lines(line.chain(silence(Some(intake))));
    *response.status_mut() = status;
    response
}

/// No more bytes, and the end of the answer only when the client has stopped sending.
fn silence(intake: Option<JoinHandle<()>>) -> impl futures_util::Stream<Item = Bytes> + Send {
    stream::once(async move {
        if let Some(intake) = intake {
            body::linger(intake).await;
        }
    })
    .filter_map(|()| async { None })
}
