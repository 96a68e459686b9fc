//! What happened, and what happens.

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use cowslip_model::api::{ErrorBody, Event};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::Api;
use crate::body;
use crate::error::ApiError;
use crate::extract::Query;

/// Lines that may wait.
const LINES: usize = 64;
/// Events read from the ledger at once.
const PAGE: u32 = 10_000;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only those numbered above this.
    #[serde(default)]
    after: i64,
    /// Go on as more happens.
    #[serde(default)]
    follow: bool,
}

/// What happened, one event a line, oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "engine", params(Which), responses(
    (status = OK, body = Event, content_type = "application/x-ndjson"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn events(
    State(api): State<Api>,
    Query(which): Query<Which>,
) -> Result<Response, ApiError> {
    // Subscribed before the ledger is read: whatever comes between is in one of the two.
    let news = which.follow.then(|| api.engine.subscribe());
    let first = api.engine.events(which.after, PAGE)?;
    let (lines, answer) = mpsc::channel::<Bytes>(LINES);
    tokio::spawn(async move {
        let mut last = which.after;
        if !send(&lines, &mut last, first).await {
            return;
        }
        let Some(mut news) = news else { return };
        loop {
            let told = tokio::select! {
                told = news.recv() => told,
                () = lines.closed() => return,
                () = api.shutdown.begun() => return,
            };
            // The ledger has every event in order; the news only says that it is worth a look. So a
            // reader that fell behind misses nothing.
            if matches!(told, Err(RecvError::Closed)) {
                return;
            }
            let more = match api.engine.events(last, PAGE) {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!(%error, "read the events");
                    return;
                }
            };
            if !send(&lines, &mut last, more).await {
                return;
            }
        }
    });
    Ok(body::lines(body::stream(answer)))
}

/// Sends events; false when nobody reads them any more.
async fn send(lines: &mpsc::Sender<Bytes>, last: &mut i64, events: Vec<Event>) -> bool {
    for event in events {
        *last = event.seq.max(*last);
        if lines.send(body::line(&event)).await.is_err() {
            return false;
        }
    }
    true
}
