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
use cowslip_engine::verbs::{ImportSource, LocalSource, RegistryImage};
use cowslip_model::api::{
    ErrorBody, ErrorCode, ImportFormat, ImportMessage, ImportOptions, ImportRequest,
    ImportSource as Place,
};
use cowslip_model::{ByteSize, Name};
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

/// What the bytes are, and what becomes of them.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Sent {
    /// The template's name.
    name: Name,
    /// What the bytes are; none: a tar of a root file system.
    #[serde(default)]
    format: ImportFormat,
    /// Which image of an archive; none: the only one.
    tag: Option<String>,
    /// The disk is at least this large, in bytes; none: the content and some room.
    size: Option<ByteSize>,
    /// Which of an image's platforms, as `linux/arm64`; none: the host's.
    platform: Option<String>,
    /// The program that `run` starts, as a JSON list of words; none: what the image says.
    entrypoint: Option<String>,
}

impl Sent {
    fn options(self) -> Result<(Name, ImportFormat, Option<String>, ImportOptions), ApiError> {
        let list = |text: String| serde_json::from_str::<Vec<String>>(&text);
        let entrypoint = self.entrypoint.map(list).transpose().map_err(|error| {
            let message = format!("the entrypoint is no JSON list of words: {error}");
            ApiError::new(ErrorCode::Invalid, message)
        })?;
        let options = ImportOptions {
            size: self.size,
            platform: self.platform,
            entrypoint,
        };
        Ok((self.name, self.format, self.tag, options))
    }
}

/// Imports a template from the bytes of the request's body.
#[utoipa::path(post, path = "/v1/templates", tag = "templates", params(Sent),
    request_body(content_type = "application/x-tar", description = "plain, gzip, zstd or xz"),
    responses(
        (status = OK, body = ImportMessage, content_type = "application/x-ndjson",
         description = "one message a line; the last one is done or failed"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn bytes(
    State(api): State<Api>,
    query: Result<Query<Sent>, ApiError>,
    body: Body,
) -> Response {
    let Upload { pieces, intake } = body::upload(body);
    let sent = match query.and_then(|Query(sent)| sent.options()) {
        Ok(sent) => sent,
        Err(error) => {
            drop(pieces);
            return refused(error, intake);
        }
    };
    let (name, format, tag, options) = sent;
    let (progress, lines) = mpsc::channel(LINES);
    let engine = api.engine.clone();
    let reader = Box::new(UploadReader::new(pieces));
    let source = match format {
        ImportFormat::Tar => LocalSource::Tar(reader),
        ImportFormat::OciArchive => LocalSource::OciArchive(reader, tag),
        ImportFormat::DockerArchive => LocalSource::DockerArchive(reader, tag),
    };
    let source = ImportSource::Local(source);
    let import = async move { engine.import(name, source, options, progress).await };
    answer(&api, import, lines, Some(intake)).await
}

/// Imports a template from a place that the engine reads itself. A path of its host may only be given by root and
/// the engine's own user.
#[utoipa::path(post, path = "/v1/templates/import", tag = "templates",
    request_body = ImportRequest,
    responses(
        (status = OK, body = ImportMessage, content_type = "application/x-ndjson",
         description = "one message a line; the last one is done or failed"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn place(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<ImportRequest>,
) -> Result<Response, ApiError> {
    let name = request.name;
    let what = format!("import the template \"{name}\"");
    let local = |path: String, format: &str| {
        peer.may_name_files(&what).map_err(|error| {
            error.hint(format!(
                "send it as a tar: tar -C DIRECTORY -c . | cowslip template import {name} {format}-"
            ))
        })?;
        absolute(&what, path)
    };
    let source = match request.source {
        Place::Directory { path } => ImportSource::Local(LocalSource::Directory(local(path, "")?)),
        Place::OciLayout { path, tag } => {
            let path = local(path, "oci-archive:")?;
            ImportSource::Local(LocalSource::OciLayout(path, tag))
        }
        Place::Registry {
            reference,
            pull,
            credentials,
        } => ImportSource::Registry(RegistryImage::new(&reference, pull, credentials)?),
    };
    let (progress, lines) = mpsc::channel(LINES);
    let engine = api.engine.clone();
    let import = async move {
        let imported = engine.import(name, source, request.options, progress);
        imported.await
    };
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
