use cowslip_model::api::{ErrorCode, ServerMessage};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support::Served;

async fn open(served: &Served, path: &str) -> WebSocketStream<UnixStream> {
    client_async(format!("ws://cowslip{path}"), served.connect().await)
        .await
        .unwrap()
        .0
}

/// Reads on to the session's failure.
async fn failure(socket: &mut WebSocketStream<UnixStream>) -> cowslip_model::api::ErrorBody {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => {
                if let ServerMessage::Failed { error } = serde_json::from_str(&text).unwrap() {
                    return error;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_session_that_cannot_be_says_why_and_closes() {
    let served = Served::start().await;
    let mut socket = open(&served, "/v1/sandboxes/nope/exec").await;
    socket
        .send(Message::text(json!({ "argv": ["true"] }).to_string()))
        .await
        .unwrap();
    assert_eq!(failure(&mut socket).await.code, ErrorCode::NotFound);
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));

    let mut socket = open(&served, "/v1/sandboxes/nope/forward").await;
    socket
        .send(Message::text(json!({ "port": 80 }).to_string()))
        .await
        .unwrap();
    assert_eq!(failure(&mut socket).await.code, ErrorCode::NotFound);
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));

    let mut socket = open(&served, "/v1/run").await;
    socket
        .send(Message::text(
            json!({ "sandbox": { "template": "nope" } }).to_string(),
        ))
        .await
        .unwrap();
    assert_eq!(failure(&mut socket).await.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn the_first_message_must_be_the_request() {
    let served = Served::start().await;
    for bad in [
        Message::text("{"),
        Message::text(r#"{"argv":["x"],"odd":1}"#),
        Message::binary(vec![0, 1, 2]),
    ] {
        let mut socket = open(&served, "/v1/sandboxes/x/exec").await;
        socket.send(bad.clone()).await.unwrap();
        assert_eq!(
            failure(&mut socket).await.code,
            ErrorCode::Invalid,
            "{bad:?}"
        );
    }
}

#[tokio::test]
async fn a_run_without_a_command_gives_its_sandbox() {
    let served = Served::start().await;
    let mut socket = open(&served, "/v1/run").await;
    let request = json!({ "sandbox": { "template": "debian", "name": "web" }, "keep": true });
    socket
        .send(Message::text(request.to_string()))
        .await
        .unwrap();
    let mut found = None;
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        match serde_json::from_str(&text).unwrap() {
            ServerMessage::Sandbox { sandbox } => found = Some(sandbox),
            ServerMessage::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(found.unwrap().name.as_str(), "web");
    assert_eq!(
        served.get("/v1/sandboxes/web").await.json()["state"],
        "running"
    );
}
