use axum::routing::{delete, get, post};
use axum::{Json, Router};
use cowslip_model::Timestamp;
use serde_json::json;

use crate::fake::{Fake, checkpoint, kernel, parsed, sandbox, template, then};

/// Everything that lists.
fn lists(at: fn() -> Timestamp) -> Fake {
    let sandboxes = move || async move {
        let now = at();
        let mut failed = sandbox(3, "broken", "failed", now);
        failed.expires_at = None;
        Json(vec![
            sandbox(1, "web", "running", now),
            sandbox(2, "db", "paused", now),
            failed,
        ])
    };
    Fake::new(
        Router::new()
            .route("/v1/sandboxes", get(sandboxes).post(async move || Json(sandbox(1, "web", "stopped", at()))))
            .route("/v1/sandboxes/{id}", get(async move || Json(sandbox(1, "web", "running", at()))))
            .route("/v1/templates", get(async move || Json([template(at())])))
            .route("/v1/kernels", get(async move || Json([kernel(at())])))
            .route("/v1/checkpoints", get(async move || Json([checkpoint(at())])))
            .route("/v1/checkpoints/{id}/fork", post(async move || {
                Json([sandbox(1, "f-1", "running", at()), sandbox(2, "f-2", "running", at())])
            }))
            .route("/v1/events", get(async || {
                let event = json!({ "seq": 1, "at": 1_700_000_000_000_u64, "kind": "sandbox.started",
                    "id": "0000000000000001", "name": "web", "detail": { "monitor_us": 7 } });
                let other = json!({ "seq": 2, "at": 1_700_000_000_500_u64, "kind": "engine.swept",
                    "id": "0000000000000002", "name": null, "detail": {} });
                format!("{event}\n{other}\n")
            }))
            .route("/v1/info", get(async || Json(json!({
                "version": "0.1.0", "instance": "00000000000000ff", "pid": 7, "state_dir": "/s",
                "run_dir": "/r", "backend": "qcow2", "backend_reason": "chosen", "monitor": null,
                "monitor_reason": "Firecracker needs KVM",
                "accelerator_reason": "no /dev/kvm", "sandboxes": { "running": 2, "failed": 1 },
                "templates": 1, "kernels": 1, "checkpoints": 1, "handles": 12,
                "disk_free": 64_424_509_440_u64, "memory_available": 22_548_578_304_u64,
            }))))
            .route("/v1/doctor", get(async || Json(json!({
                "healthy": false,
                "checks": [
                    { "name": "kvm", "status": "warning", "detail": "cannot run stock kernels" },
                    { "name": "monitor", "status": "failed", "detail": "no qemu",
                      "mend": "apt install qemu-system-x86" },
                    { "name": "disk space", "status": "ok", "detail": "60 GiB free" },
                ],
                "differences": ["remove \"/s/layers/x.qcow2\""],
            }))))
            .route("/v1/gc", post(async || Json(json!({
                "released": ["process 12 of sandbox \"web\""], "left": [],
            })))),
    )
}

#[test]
fn tables_are_aligned_when_piped() {
    let fake = lists(then);
    let mut all = String::new();
    for line in [
        "ls",
        "ls -q",
        "ls --no-trunc -f state=running",
        "ls -f name=b -f state=paused -q",
        "ls --last 1",
        "template ls",
        "kernel ls",
        "checkpoint ls",
        "checkpoint ls -q",
        "events",
        "events --json",
        "info",
        "doctor",
        "gc",
        "create debian",
        "fork point --count 2 --name f",
    ] {
        let printed = fake.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(printed.err, "", "{line}");
        all.push_str(&format!("$ cowslip {line}\n{}", printed.out));
        if printed.code != 0 {
            all.push_str(&format!("exit {}\n", printed.code));
        }
        all.push('\n');
    }
    insta::assert_snapshot!(all);
}

#[test]
fn json_is_the_apis_own() {
    let fake = lists(|| Timestamp(1_700_000_000_000));
    let mut all = String::new();
    for line in [
        "ls --json -f name=broken",
        "template ls --json",
        "kernel ls --json",
        "checkpoint ls --json",
        "info --json",
        "doctor --json",
        "gc --json",
    ] {
        let printed = fake.run(&line.split(' ').collect::<Vec<_>>());
        parsed(&printed);
        all.push_str(&format!("$ cowslip {line}\n{}\n", printed.out));
    }
    insta::assert_snapshot!(all);
    let inspected = parsed(&fake.run(&["inspect", "web"]));
    assert_eq!(inspected[0]["name"], "web");
    assert_eq!(
        parsed(&fake.run(&["fork", "point", "--json"]))
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn each_of_several_is_reported() {
    use axum::extract::Path;
    use axum::response::IntoResponse;
    use cowslip_model::api::ErrorCode;

    let remove = |Path(name): Path<String>| async move {
        if name == "gone" {
            crate::fake::refusal(
                404,
                ErrorCode::NotFound,
                "there is no sandbox \"gone\"",
                None,
            )
            .into_response()
        } else {
            axum::http::StatusCode::NO_CONTENT.into_response()
        }
    };
    let fake = Fake::new(Router::new().route("/v1/sandboxes/{id}", delete(remove)));
    let printed = fake.run(&["rm", "a", "gone", "b"]);
    assert_eq!((printed.code, printed.out.as_str()), (1, "a\nb\n"));
    assert_eq!(printed.err, "cowslip: there is no sandbox \"gone\"\n");
    assert_eq!(fake.run(&["rm", "gone"]).code, 125);
    assert_eq!(fake.run(&["rm", "a"]).code, 0);
    assert_eq!(
        parsed(&fake.run(&["rm", "a", "b", "--json"])),
        json!(["a", "b"])
    );
    assert_eq!(fake.run(&["rm", ""]).code, 125);
}
