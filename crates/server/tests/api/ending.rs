use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;

use crate::support::{Served, request};

#[tokio::test]
async fn a_request_ends_the_server_in_order() {
    let served = Served::start().await;
    // A stream that would go on for ever, and a connection on which nothing is asked.
    let follow = request(Method::GET, "/v1/events?follow=true", Body::empty());
    let follower = served.open(follow).await;
    let _silent = served.connect().await;
    let answer = served.post("/v1/shutdown", json!({})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(served.server.await.unwrap(), "a request");
    assert!(
        follower.into_body().collect().await.is_ok(),
        "the stream was cut, not ended"
    );
}

#[tokio::test]
async fn the_socket_goes_with_the_server() {
    let mut served = Served::start().await;
    assert!(served.is_listening());
    served.shutdown.begin("a test");
    assert_eq!((&mut served.server).await.unwrap(), "a test");
    assert!(!served.is_listening());
}

#[tokio::test(start_paused = true)]
async fn an_idle_server_ends_and_a_busy_one_does_not() {
    let span = Duration::from_secs(300);
    let idle = Served::start_with(Some(span)).await;
    assert_eq!(idle.server.await.unwrap(), "idle");

    let busy = Served::start_with(Some(span)).await;
    busy.post(
        "/v1/sandboxes",
        json!({ "template": "debian", "name": "web" }),
    )
    .await;
    busy.post("/v1/sandboxes/web/start", json!({})).await;
    tokio::time::sleep(span * 3).await;
    assert!(
        !busy.server.is_finished(),
        "it ended under a running sandbox"
    );
    busy.post("/v1/sandboxes/web/stop", json!({})).await;
    assert_eq!(busy.server.await.unwrap(), "idle");
}
