use axum::http::StatusCode;
use serde_json::json;

use crate::support::Served;

#[tokio::test]
async fn a_sandbox_lives_and_is_forked() {
    let served = Served::start().await;
    let created = served
        .post(
            "/v1/sandboxes",
            json!({ "template": "debian", "name": "web" }),
        )
        .await;
    assert_eq!(created.status, StatusCode::CREATED);
    assert_eq!(created.json()["state"], "stopped");
    let started = served.post("/v1/sandboxes/web/start", json!({})).await;
    assert_eq!(
        (started.status, &started.json()["state"]),
        (StatusCode::OK, &json!("running"))
    );

    let point = served
        .post(
            "/v1/checkpoints",
            json!({ "sandbox": "web", "name": "point" }),
        )
        .await;
    assert_eq!(point.status, StatusCode::CREATED);
    let forks = served
        .post(
            "/v1/checkpoints/point/fork",
            json!({ "count": 2, "name": "f" }),
        )
        .await;
    assert_eq!(forks.status, StatusCode::CREATED);
    assert_eq!(forks.json().as_array().unwrap().len(), 2);

    for (verb, state) in [
        ("pause", "paused"),
        ("resume", "running"),
        ("stop", "stopped"),
    ] {
        let answer = served
            .post(&format!("/v1/sandboxes/web/{verb}"), json!({}))
            .await;
        assert_eq!(answer.json()["state"], state, "{verb}: {answer:?}");
    }
    let names: Vec<_> = served
        .get("/v1/sandboxes")
        .await
        .json()
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(names.len(), 3);

    assert_eq!(
        served.delete("/v1/checkpoints/point").await.status,
        StatusCode::CONFLICT
    );
    assert_eq!(
        served.delete("/v1/sandboxes/f-1").await.status,
        StatusCode::CONFLICT
    );
    for path in [
        "sandboxes/f-1?force=true",
        "sandboxes/f-2?force=true",
        "checkpoints/point",
        "sandboxes/web",
    ] {
        let answer = served.delete(&format!("/v1/{path}")).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{path}: {answer:?}");
    }
    assert_eq!(served.get("/v1/sandboxes").await.json(), json!([]));
}

#[tokio::test]
async fn what_there_is_can_be_listed_and_looked_at() {
    let served = Served::start().await;
    assert_eq!(
        served.get("/v1/templates").await.json()[0]["names"],
        json!(["debian"])
    );
    assert_eq!(
        served.get("/v1/templates/debian").await.json()["entries"],
        100
    );
    assert_eq!(served.get("/v1/kernels").await.json()[0]["name"], "plain");
    assert_eq!(
        served.get("/v1/kernels/plain").await.json()["release"],
        "6.12.0"
    );
    assert_eq!(served.get("/v1/checkpoints").await.json(), json!([]));
    assert_eq!(served.get("/v1/info").await.json()["templates"], 1);
    assert!(served.get("/v1/doctor").await.json()["checks"].is_array());
    assert!(served.post("/v1/gc", json!({})).await.json()["released"].is_array());
    assert_eq!(
        served.get("/v1/version").await.json(),
        json!({ "version": env!("CARGO_PKG_VERSION") })
    );
}

#[tokio::test]
async fn events_are_lines_and_can_be_followed() {
    use axum::body::Body;
    use axum::http::Method;
    use http_body_util::BodyExt;

    let served = Served::start().await;
    served
        .post(
            "/v1/sandboxes",
            json!({ "template": "debian", "name": "one" }),
        )
        .await;
    let request =
        crate::support::request(Method::GET, "/v1/events?after=0&follow=true", Body::empty());
    let mut answer = served.open(request).await.into_body();
    let mut seen = Vec::new();
    let mut next = async || {
        while !seen.contains(&b'\n') {
            seen.extend_from_slice(answer.frame().await.unwrap().unwrap().data_ref().unwrap());
        }
        let end = seen.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        serde_json::from_slice::<serde_json::Value>(&seen.drain(..end).collect::<Vec<_>>()).unwrap()
    };
    let first = next().await;
    assert_eq!(
        (&first["kind"], &first["name"]),
        (&json!("sandbox.created"), &json!("one"))
    );
    served
        .post(
            "/v1/sandboxes",
            json!({ "template": "debian", "name": "two" }),
        )
        .await;
    let second = next().await;
    assert_eq!(second["name"], "two");
    assert!(second["seq"].as_i64() > first["seq"].as_i64());

    let after = format!("/v1/events?after={}", first["seq"]);
    let lines = served.get(&after).await.body;
    assert_eq!(lines.iter().filter(|&&byte| byte == b'\n').count(), 1);
}
