use axum::body::Body;
use axum::http::{Method, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Served, request};

#[tokio::test]
async fn every_error_is_an_error_body() {
    let served = Served::start().await;
    let missing = served.get("/v1/sandboxes/nope").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.json()["code"], "not_found");
    let near = served
        .post("/v1/sandboxes", json!({ "template": "debina" }))
        .await;
    assert_eq!(near.status, StatusCode::NOT_FOUND);
    assert!(
        near.json()["hint"].as_str().unwrap().contains("\"debian\""),
        "{near:?}"
    );

    let cases = [
        (Method::GET, "/v1/nothing", "", 404),
        (Method::PATCH, "/v1/info", "", 405),
        (Method::GET, "/v1/sandboxes/..%2f..%2fetc", "", 404),
        (Method::POST, "/v1/sandboxes", "{", 400),
        (
            Method::POST,
            "/v1/sandboxes",
            r#"{"template":"debian","odd":1}"#,
            400,
        ),
        (
            Method::POST,
            "/v1/sandboxes",
            r#"{"template":"debian","name":"../x"}"#,
            400,
        ),
        (Method::DELETE, "/v1/sandboxes/x?force=maybe", "", 400),
        (Method::GET, "/v1/events?after=x", "", 400),
        (Method::GET, "/v1/run", "", 400),
        (
            Method::GET,
            "/v1/sandboxes/x/archive?path=relative",
            "",
            400,
        ),
        (
            Method::POST,
            "/v1/kernels",
            r#"{"name":"k","image":"relative"}"#,
            400,
        ),
        (
            Method::POST,
            "/v1/templates/import",
            r#"{"name":"k","source":{"type":"directory","path":"relative"}}"#,
            400,
        ),
        (
            Method::POST,
            "/v1/templates/import",
            r#"{"name":"k","source":{"type":"oci-layout","path":"/x"},"options":{"platform":"plan9"}}"#,
            400,
        ),
        (
            Method::POST,
            "/v1/templates/import",
            r#"{"name":"k","source":{"type":"floppy","path":"/x"}}"#,
            400,
        ),
        (Method::POST, "/v1/templates?name=k&format=floppy", "", 400),
        (Method::POST, "/v1/templates?name=k&entrypoint=sh", "", 400),
        (Method::POST, "/v1/templates?name=UPPER", "", 400),
    ];
    for (method, path, body, status) in cases {
        let answer = served
            .send(request(method.clone(), path, Body::from(body)))
            .await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path}: {answer:?}"
        );
        let error = answer.json();
        assert!(
            error["code"].is_string() && error["message"].is_string(),
            "{path}: {error}"
        );
    }
}

#[tokio::test]
async fn a_request_has_a_bound() {
    let served = Served::start().await;
    let huge = format!(r#"{{"template":"{}"}}"#, "x".repeat(2 << 20));
    let answer = served
        .send(request(Method::POST, "/v1/sandboxes", Body::from(huge)))
        .await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.json()["code"], "invalid");
}

#[tokio::test]
async fn clients_of_another_series_are_told() {
    let served = Served::start().await;
    let with_version = |path: &str, version: &str| {
        let mut request = request(Method::GET, path, Body::empty());
        request
            .headers_mut()
            .insert(cowslip_server::VERSION_HEADER, version.parse().unwrap());
        request
    };
    let answer = served.send(with_version("/v1/info", "99.0.0")).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(
        answer.json()["hint"]
            .as_str()
            .unwrap()
            .contains("serve --stop")
    );
    let answer = served.open(with_version("/v1/version", "99.0.0")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        answer.headers()[cowslip_server::VERSION_HEADER],
        env!("CARGO_PKG_VERSION")
    );
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let served = Served::start().await;
    let (sender, pieces) = mpsc::channel::<std::io::Result<Bytes>>(1);
    let body = Body::from_stream(ReceiverStream::new(pieces));
    let mut answer = served
        .open(request(Method::POST, "/v1/templates?name=debian", body))
        .await;
    assert_eq!(answer.status(), StatusCode::CONFLICT);
    let line = answer.body_mut().frame().await.unwrap().unwrap();
    assert!(line.data_ref().unwrap().ends_with(b"\n"));
    // The answer is here, and what is still being sent is taken and thrown away.
    for _ in 0..100 {
        sender
            .send(Ok(Bytes::from(vec![0; 64 << 10])))
            .await
            .unwrap();
    }
    drop(sender);
    assert!(answer.body_mut().frame().await.is_none());
}
