//! Accepts connections and serves them, until the server is told to end.
//!
//! ```text
//!  accepting ──shutdown──► closed: the socket is gone, what was waiting in it is served
//!                              └──► requests finish, streams and sessions are told to end ──► return
//! ```

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use cowslip_engine::Engine;
use cowslip_model::SandboxState;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::activity::Activity;
use crate::peer::Peer;
use crate::router;
use crate::routes::Api;
use crate::shutdown::Shutdown;

/// Connections at once; more wait in the socket.
const CONNECTIONS: usize = 512;
/// How long a client may take to send a request's head.
const HEAD_BOUND: Duration = Duration::from_secs(30);
/// How long a client that has sent nothing yet may still send a request when the end has begun.
const SILENCE_BOUND: Duration = Duration::from_secs(1);
/// How long accepting rests after the system refused, as when descriptors have run out.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// End after so long without clients and running sandboxes; none: never.
    pub idle_exit: Option<Duration>,
    /// Ends the server.
    pub shutdown: Shutdown,
}

/// Serves the engine's API until the end is asked for, and gives the reason. `close` is called when
/// no new client is wanted, and takes the socket's name away. Requests under way are finished.
pub async fn serve(
    engine: Arc<Engine>,
    listener: UnixListener,
    options: Options,
    close: impl FnOnce(),
) -> &'static str {
    let Options {
        idle_exit,
        shutdown,
    } = options;
    let activity = Activity::new();
    let sessions = TaskTracker::new();
    let api = Api {
        engine: Arc::clone(&engine),
        shutdown: shutdown.clone(),
        activity: activity.clone(),
        sessions: sessions.clone(),
    };
    let server = Server {
        router: router::router(api),
        activity: activity.clone(),
        connections: TaskTracker::new(),
        shutdown: shutdown.clone(),
        places: Arc::new(Semaphore::new(CONNECTIONS)),
    };
    if let Some(span) = idle_exit {
        tokio::spawn(end_when_idle(engine, activity, span, shutdown.clone()));
    }
    server.accept(&listener, &shutdown).await;
    close();
    // Whoever connected before the name went has a right to an answer.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        server.spawn(stream, None);
    }
    drop(listener);
    let Server { connections, .. } = server;
    connections.close();
    connections.wait().await;
    sessions.close();
    sessions.wait().await;
    shutdown.reason()
}

struct Server {
    router: Router,
    activity: Activity,
    connections: TaskTracker,
    shutdown: Shutdown,
    places: Arc<Semaphore>,
}

impl Server {
    async fn accept(&self, listener: &UnixListener, shutdown: &Shutdown) {
        loop {
            let next = async {
                // The semaphore is never closed.
                let place = Arc::clone(&self.places).acquire_owned().await.ok();
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                next = next => next,
                () = shutdown.begun() => return,
            };
            match accepted {
                Ok((stream, _)) => self.spawn(stream, place),
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }

    fn spawn(&self, stream: UnixStream, place: Option<OwnedSemaphorePermit>) {
        let peer = Peer {
            uid: stream.peer_cred().ok().map(|peer| peer.uid()),
        };
        let router = self.router.clone();
        let (begun, seen) = watch::channel(false);
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            begun.send_replace(true);
            let mut request: Request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            let router = router.clone();
            async move {
                let answer: Result<_, Infallible> = router.oneshot(request).await;
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_BOUND)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let client = self.activity.enter();
        let shutdown = self.shutdown.clone();
        self.connections.spawn(async move {
            let _held = (client, place);
            let mut connection = pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = last_call(seen, &shutdown) => {
                    // A request under way is finished, and no further one is taken.
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                // A client that went away, mostly: its request is dropped with the connection.
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

/// Resolves when the end has begun and the client has sent a request, or has had the time to.
async fn last_call(mut seen: watch::Receiver<bool>, shutdown: &Shutdown) {
    shutdown.begun().await;
    let _ = tokio::time::timeout(SILENCE_BOUND, seen.wait_for(|begun| *begun)).await;
}

/// Begins the end when nobody was served and nothing has run for the whole span.
async fn end_when_idle(
    engine: Arc<Engine>,
    activity: Activity,
    span: Duration,
    shutdown: Shutdown,
) {
    loop {
        activity.none().await;
        tokio::select! {
            () = activity.some() => {}
            () = shutdown.begun() => return,
            () = tokio::time::sleep(span) => {
                if !is_busy(&engine) {
                    shutdown.begin("idle");
                    return;
                }
            }
        }
    }
}

/// Whether a sandbox runs, is being worked on, or has a lifetime that somebody must end.
fn is_busy(engine: &Engine) -> bool {
    match engine.sandboxes() {
        Ok(sandboxes) => sandboxes.iter().any(|sandbox| {
            sandbox.state == SandboxState::Running
                || sandbox.transition.is_some()
                || sandbox.expires_at.is_some()
        }),
        Err(error) => {
            tracing::warn!(%error, "list the sandboxes");
            true
        }
    }
}
