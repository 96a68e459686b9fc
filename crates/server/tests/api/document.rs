use std::path::Path;

/// `UPDATE=1 cargo test -p cowslip-server` writes it anew.
#[test]
fn the_document_is_the_one_checked_in() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let now = serde_json::to_string_pretty(&cowslip_server::openapi()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &now).unwrap();
    }
    let then = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        now == then,
        "docs/openapi.json is out of date: UPDATE=1 cargo test -p cowslip-server"
    );
}

#[tokio::test]
async fn the_engine_serves_the_same_document() {
    let served = crate::support::Served::start().await;
    let answer = served.get("/v1/openapi.json").await.json();
    assert_eq!(
        answer,
        serde_json::to_value(cowslip_server::openapi()).unwrap()
    );
    let paths = answer["paths"].as_object().unwrap();
    for path in [
        "/v1/run",
        "/v1/sandboxes/{sandbox}/exec",
        "/v1/checkpoints/{checkpoint}/fork",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
}
