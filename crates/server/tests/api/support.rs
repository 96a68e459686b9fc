//! A served engine, and a small client.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode};
use cowslip_engine::Engine;
use cowslip_ledger::fault::Injector;
use cowslip_server::{Options, Shutdown};
use cowslip_sim::Rig;
use cowslip_store::Backend;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

pub(crate) struct Served {
    pub(crate) shutdown: Shutdown,
    pub(crate) server: JoinHandle<&'static str>,
    socket: PathBuf,
    _rig: Rig,
    _dir: tempfile::TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Served {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_with(idle_exit: Option<Duration>) -> Self {
        let rig = Rig::new().unwrap();
        rig.install(&rig.site(Injector::default()).unwrap())
            .unwrap();
        let parts = rig.parts(Backend::Qcow2, Injector::default()).unwrap();
        let (engine, _) = Engine::assemble(parts).await;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let shutdown = Shutdown::new();
        let options = Options {
            idle_exit,
            shutdown: shutdown.clone(),
        };
        let path = socket.clone();
        let engine: Arc<Engine> = engine;
        let server = tokio::spawn(async move {
            cowslip_server::serve(engine, listener, options, || {
                std::fs::remove_file(path).unwrap();
            })
            .await
        });
        Self {
            shutdown,
            server,
            socket,
            _rig: rig,
            _dir: dir,
        }
    }

    pub(crate) async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.socket.exists()
    }

    /// Sends a request on a connection of its own and gives the answer as it comes.
    pub(crate) async fn open(&self, request: Request<Body>) -> Response<Incoming> {
        let stream = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let answer = self.open(request).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        Answer { status, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(request(Method::POST, path, Body::from(body.to_string())))
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(request(Method::DELETE, path, Body::empty()))
            .await
    }
}

pub(crate) fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "cowslip")
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}
