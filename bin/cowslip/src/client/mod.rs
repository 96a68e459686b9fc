//! The client of the engine's HTTP API, over its unix socket.
//!
//! One connection a request: a unix socket costs microseconds, and a connection that ends says for
//! sure that its request is given up. No request has a time limit of its own (R40): the engine
//! bounds what it does.

mod body;
mod request;
mod session;
mod stream;

use std::io;

use cowslip_host::Layout;
use cowslip_model::api::ErrorCode;
use tokio::net::UnixStream;

use crate::exit::Failure;

pub(crate) use body::Upload;
pub(crate) use request::Path;
pub(crate) use session::{Incoming, Said, Sender, Session};
pub(crate) use stream::{Lines, Octets};

/// Names the version of whoever speaks, in every request and every answer.
pub(crate) const VERSION_HEADER: &str = "cowslip-version";
/// Our version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Speaks to the engine of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    layout: Layout,
    quiet: bool,
}

impl Client {
    /// A client of the engine of this layout. Nothing is connected or started yet.
    pub(crate) fn new(layout: Layout, quiet: bool) -> Self {
        Self { layout, quiet }
    }

    /// Where that engine keeps its things.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A connection to the engine that listens; `None` when none does.
    pub(crate) async fn connect_running(&self) -> Result<Option<UnixStream>, Failure> {
        let path = self.layout.api_socket();
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Failure::io(
                format!("connect to the engine at \"{}\"", path.display()),
                &error,
            )),
        }
    }

    /// A connection to the engine, which is started where none listens.
    pub(crate) async fn connect(&self) -> Result<UnixStream, Failure> {
        if let Some(stream) = self.connect_running().await? {
            return Ok(stream);
        }
        let layout = self.layout.clone();
        let started = tokio::task::spawn_blocking(move || crate::autostart::ensure(&layout)).await;
        started.map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))??;
        self.connect_running().await?.ok_or_else(|| {
            Failure::new(
                ErrorCode::Internal,
                "the engine was started and has ended already",
            )
            .hint(format!(
                "its log says why: \"{}\"",
                self.layout.engine_log().display()
            ))
        })
    }

    /// The failure of a connection that broke before the answer was whole.
    fn broken(&self, what: impl std::fmt::Display) -> Failure {
        Failure::new(
            ErrorCode::Internal,
            "the engine went away in the middle of the request",
        )
        .because(what)
        .hint(format!(
            "its log may say why: \"{}\"",
            self.layout.engine_log().display()
        ))
    }

    /// Says once that the engine is of another version than we are.
    fn compare_version(&self, headers: &http::HeaderMap) {
        use std::sync::atomic::{AtomicBool, Ordering};
        static SAID: AtomicBool = AtomicBool::new(false);
        let theirs = headers
            .get(VERSION_HEADER)
            .and_then(|value| value.to_str().ok());
        let theirs = theirs.unwrap_or("unknown");
        if theirs != VERSION && !self.quiet && !SAID.swap(true, Ordering::Relaxed) {
            crate::output::note(&format!(
                "the engine has version {theirs} and this command {VERSION}: \"cowslip serve --stop\" \
                 ends it (sandboxes keep running), the next command starts its own"
            ));
        }
    }
}

/// Whether an error of `connect` means that nobody listens. What is wrong with a directory that is
/// none is for the engine's start to say.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory
    )
}
