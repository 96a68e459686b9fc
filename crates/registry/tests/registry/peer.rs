//! A registry in the test's own process, which does what a test wants of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
    /// As the client calls this server.
    pub(crate) host: String,
    /// How often the same was asked before.
    pub(crate) before: usize,
}

/// A piece of an answer's body.
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    /// What comes next waits for this.
    After(BoxFuture<'static, ()>),
    /// The connection breaks.
    Break,
    /// Nothing comes any more.
    Stall,
    Endless,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) pieces: Vec<Piece>,
    /// Nothing of it is sent before this.
    pub(crate) after: Option<BoxFuture<'static, ()>>,
}

impl Answer {
    pub(crate) fn of(status: u16, bytes: &[u8]) -> Self {
        Self {
            status,
            headers: vec![("content-length", bytes.len().to_string())],
            pieces: vec![Piece::Bytes(bytes.to_vec())],
            after: None,
        }
    }

    pub(crate) fn refusal(status: u16, code: &str, message: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Self::of(status, body.as_bytes())
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A body in pieces, with the length that it is said to have.
    pub(crate) fn pieces(status: u16, length: Option<usize>, pieces: Vec<Piece>) -> Self {
        let length = length.map(|length| ("content-length", length.to_string()));
        Self {
            status,
            headers: length.into_iter().collect(),
            pieces,
            after: None,
        }
    }

    pub(crate) fn after(mut self, event: impl Future<Output = ()> + Send + 'static) -> Self {
        self.after = Some(event.boxed());
        self
    }

    /// None at all.
    pub(crate) fn stall() -> Self {
        Self::of(200, b"").after(std::future::pending())
    }
}

/// What a peer has: by path, with its type.
pub(crate) type Files = BTreeMap<String, (String, Vec<u8>)>;
type Script = Box<dyn Fn(&Asked) -> Option<Answer> + Send + Sync>;

struct Shared {
    files: Mutex<Files>,
    script: Script,
    asked: watch::Sender<Vec<Asked>>,
    sent: AtomicU64,
}

pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Peer {
    /// A registry with these files. What the script answers counts before them.
    pub(crate) async fn start(
        files: Files,
        script: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            files: Mutex::new(files),
            script: Box::new(script),
            asked: watch::Sender::default(),
            sent: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            accepting,
        }
    }

    pub(crate) async fn plain(files: Files) -> Self {
        Self::start(files, |_| None).await
    }

    pub(crate) fn replace(&self, files: Files) {
        *self.shared.files.lock().unwrap() = files;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.borrow().clone()
    }

    pub(crate) fn forget(&self) {
        self.shared.asked.send_replace(Vec::new());
        self.shared.sent.store(0, Ordering::SeqCst);
    }

    /// How often something was asked for whose path ends so.
    pub(crate) fn count(&self, method: &str, end: &str) -> usize {
        let asked = self.asked();
        let same = |asked: &&Asked| asked.method == method && asked.path.ends_with(end);
        asked.iter().filter(same).count()
    }

    /// Bytes of bodies that were handed to connections.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Waits until something like this was asked for.
    pub(crate) async fn until(&self, asked: impl Fn(&Asked) -> bool) {
        let mut watch = self.shared.asked.subscribe();
        watch.wait_for(|all| all.iter().any(&asked)).await.unwrap();
    }
}

impl Peer {
    /// Waits until so many requests have arrived.
    pub(crate) async fn until_count(&self, count: usize) {
        let mut watch = self.shared.asked.subscribe();
        watch.wait_for(|all| all.len() >= count).await.unwrap();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| answer(&shared, request));
            // A client that goes, and a body that breaks, are part of the tests.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| Some(parts.headers.get(name)?.to_str().unwrap().to_owned());
    let body = body.collect().await.unwrap().to_bytes();
    let mut asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        range: header("range"),
        authorization: header("authorization"),
        body: String::from_utf8(body.to_vec()).unwrap(),
        host: header("host").unwrap_or_default(),
        before: 0,
    };
    shared.asked.send_modify(|all| {
        let same = |other: &&Asked| other.method == asked.method && other.path == asked.path;
        asked.before = all.iter().filter(same).count();
        all.push(asked.clone());
    });
    let answer = match (shared.script)(&asked) {
        Some(answer) => answer,
        None => shared.serve(&asked),
    };
    if let Some(event) = answer.after {
        event.await;
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let is_head = asked.method == "HEAD";
    let pieces = if is_head { Vec::new() } else { answer.pieces };
    let counted = Arc::clone(shared);
    let body = stream::iter(pieces).flat_map(frames).inspect(move |frame| {
        if let Ok(frame) = frame {
            let length = frame.data_ref().map_or(0, Bytes::len) as u64;
            counted.sent.fetch_add(length, Ordering::SeqCst);
        }
    });
    Ok(response.body(StreamBody::new(body).boxed_unsync()).unwrap())
}

fn frames(piece: Piece) -> stream::BoxStream<'static, io::Result<Frame<Bytes>>> {
    let data = |bytes: Vec<u8>| Ok(Frame::data(Bytes::from(bytes)));
    match piece {
        Piece::Bytes(bytes) => stream::iter([data(bytes)]).boxed(),
        Piece::After(event) => event
            .into_stream()
            .filter_map(|()| std::future::ready(None))
            .boxed(),
        Piece::Break => stream::iter([Err(io::Error::other("broken by the test"))]).boxed(),
        Piece::Stall => stream::pending().boxed(),
        Piece::Endless => stream::repeat_with(move || data(vec![7; 4096])).boxed(),
    }
}

impl Shared {
    /// What a registry does that behaves.
    fn serve(&self, asked: &Asked) -> Answer {
        if asked.path == "/v2/" {
            return Answer::of(200, b"{}");
        }
        let files = self.files.lock().unwrap();
        let Some((kind, bytes)) = files.get(&asked.path) else {
            return Answer::refusal(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let answer = match asked.range.as_deref().map(start) {
            Some(start) if start < bytes.len() => {
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                Answer::of(206, &bytes[start..]).with("content-range", range)
            }
            Some(_) => return Answer::refusal(416, "RANGE", "no such range"),
            None => Answer::of(200, bytes),
        };
        let digest = cowslip_image::BlobDigest::of(bytes).to_string();
        answer
            .with("content-type", kind)
            .with("docker-content-digest", digest)
    }
}

/// Where a range begins.
pub(crate) fn start(range: &str) -> usize {
    let start = range
        .strip_prefix("bytes=")
        .unwrap()
        .strip_suffix('-')
        .unwrap();
    start.parse().unwrap()
}
