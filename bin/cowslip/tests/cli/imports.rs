//! How far an import is, on a terminal.

use axum::body::Body;
use axum::routing::post;
use axum::{Json, Router};
use cowslip_model::api::{ImportMessage, ImportRequest, ImportSource, PullPolicy};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::fake::{Fake, template, then};
use crate::terminal::Terminal;

fn layer(digit: &str, bytes: u64) -> ImportMessage {
    ImportMessage::Layer {
        digest: format!("sha256:{}", digit.repeat(64)),
        total: 1000,
        bytes,
    }
}

#[test]
fn each_layer_has_a_bar() {
    let (tell, told) = mpsc::unbounded_channel::<ImportMessage>();
    let told = std::sync::Arc::new(Mutex::new(Some(told)));
    let import = async move |Json(request): Json<ImportRequest>| {
        let expected = ImportSource::Registry {
            reference: "docker.io/library/debian:12".to_owned(),
            pull: PullPolicy::Always,
            credentials: None,
        };
        assert_eq!(request.source, expected);
        let told = told.lock().await.take().unwrap();
        let lines = UnboundedReceiverStream::new(told)
            .map(|message| serde_json::to_string(&message).map(|text| text + "\n"));
        Body::from_stream(lines)
    };
    let fake = Fake::new(Router::new().route("/v1/templates/import", post(import)));
    let terminal = Terminal::new();
    let words = [
        "template",
        "import",
        "debian",
        "docker://debian:12",
        "--pull",
        "always",
    ];
    let mut child = terminal.spawn(&fake, &words);
    tell.send(layer("a", 0)).unwrap();
    terminal.until("aaaaaaaaaaaa [");
    tell.send(layer("b", 0)).unwrap();
    terminal.until("bbbbbbbbbbbb [");
    tell.send(layer("a", 500)).unwrap();
    terminal.until("aaaaaaaaaaaa [=====");
    terminal.until("] 500 B/1000 B");
    // One that is whole has none any more.
    tell.send(layer("a", 1000)).unwrap();
    tell.send(layer("b", 250)).unwrap();
    let shown = terminal.until("] 250 B/1000 B");
    let last = shown.rsplit("reading").next().unwrap_or(&shown);
    assert!(!last.contains("aaaaaaaaaaaa"), "{shown:?}");
    let done = ImportMessage::Done {
        template: Box::new(template(then())),
        skipped: Vec::new(),
        new: true,
    };
    tell.send(done).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
