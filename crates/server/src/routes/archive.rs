//! Files of a running sandbox, as tar archives.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use cowslip_model::api::{ErrorBody, ErrorCode};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::Api;
use crate::body::{self, Upload};
use crate::error::ApiError;
use crate::extract::Query;

/// Pieces on the way to the engine.
const PIECES: usize = 4;

/// Where.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Where {
    /// An absolute path in the guest.
    path: String,
}

impl Where {
    fn checked(self) -> Result<String, ApiError> {
        if self.path.starts_with('/') && !self.path.contains('\0') {
            return Ok(self.path);
        }
        let message = format!("the path {:?} in the guest is not absolute", self.path);
        Err(ApiError::new(ErrorCode::Invalid, message))
    }
}

/// A file or a tree of a running sandbox; the archive's top entry is the path's last component.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox}/archive", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id"), Where),
    responses(
        (status = OK, description = "an archive", content_type = "application/x-tar"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn read(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(place): Query<Where>,
) -> Result<Response, ApiError> {
    let pieces = api.engine.archive_out(&name, &place.checked()?).await?;
    let pieces = body::stream(pieces).map(|piece| {
        piece.map_err(|error| {
            tracing::warn!(%error, "an archive broke off");
            error
        })
    });
    Ok(body::octets("application/x-tar", pieces))
}

/// Unpacks the archive in the request's body into an existing directory of a running sandbox.
#[utoipa::path(put, path = "/v1/sandboxes/{sandbox}/archive", tag = "sandboxes",
    params(("sandbox" = String, Path, description = "name or id"), Where),
    request_body(content_type = "application/x-tar", description = "a plain tar"),
    responses(
        (status = NO_CONTENT, description = "unpacked"),
        (status = "default", body = ErrorBody),
    ))]
pub(crate) async fn write(
    State(api): State<Api>,
    Path(name): Path<String>,
    place: Result<Query<Where>, ApiError>,
    body: Body,
) -> Result<StatusCode, Response> {
    let Upload { mut pieces, intake } = body::upload(body);
    let (sender, queue) = mpsc::channel::<Bytes>(PIECES);
    let unpack = async {
        let path = place?.0.checked()?;
        Ok::<_, ApiError>(api.engine.archive_in(&name, &path, queue).await?)
    };
    let result = {
        let unpack = std::pin::pin!(unpack);
        let feed = async {
            while let Some(Ok(piece)) = pieces.recv().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
            drop(sender);
        };
        tokio::join!(unpack, feed).0
    };
    drop(pieces);
    match result {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(super::imports::refused(error, intake)),
    }
}
