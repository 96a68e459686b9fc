//! The routes, one file a kind of object or stream.

pub(crate) mod archive;
pub(crate) mod checkpoints;
pub(crate) mod engine;
pub(crate) mod events;
pub(crate) mod imports;
pub(crate) mod kernels;
pub(crate) mod logs;
pub(crate) mod sandboxes;
pub(crate) mod sessions;
pub(crate) mod templates;

use std::sync::Arc;

use cowslip_engine::Engine;
use serde::Deserialize;
use tokio_util::task::TaskTracker;
use utoipa::IntoParams;

use crate::activity::Activity;
use crate::error::ApiError;
use crate::shutdown::Shutdown;

/// What every route has.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: Arc<Engine>,
    pub(crate) shutdown: Shutdown,
    pub(crate) activity: Activity,
    /// Sessions and imports, which outlive the requests that began them.
    pub(crate) sessions: TaskTracker,
}

/// What a route gives: a value, or an error answer.
pub(crate) type Answer<T> = Result<axum::Json<T>, ApiError>;

/// `?force=true`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Force {
    /// Also where it is in use.
    #[serde(default)]
    pub(crate) force: bool,
}
