//! The client against a scripted peer on a real unix socket.

use std::future::Future;
use std::path::{Path, PathBuf};

use cowslip_model::NamedCpuTemplate;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use super::peer::{Got, NO_CONTENT, Peer, with_body};
use super::*;

fn peer() -> (Api, Peer) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let peer = Peer::listen(&socket).holding(dir);
    (Api::new(socket), peer)
}

/// One request and its scripted answer.
async fn exchange<'a, T, F>(
    call: impl FnOnce(&'a Api) -> F,
    parts: &'a (Api, Peer),
    with: &str,
) -> (T, Got)
where
    F: Future<Output = T> + 'a,
{
    let (api, peer) = parts;
    tokio::join!(call(api), peer.serve(with))
}

/// Asks, is answered that it was done, and compares what was sent.
macro_rules! sends {
    ($call:expr, $line:expr, $body:expr) => {{
        let parts = peer();
        let (done, got) = exchange($call, &parts, NO_CONTENT).await;
        let () = done.unwrap();
        assert_eq!(got.line, concat!($line, " HTTP/1.1"));
        assert_eq!(got.body, Some($body));
        assert!(
            got.head.contains("content-type: application/json") && got.head.contains("host: "),
            "{}",
            got.head
        );
    }};
}

#[tokio::test]
async fn every_request_is_what_firecracker_takes() {
    let mut source = BootSource {
        kernel_image_path: "/k/vmlinuz".into(),
        initrd_path: Some("/k/initramfs".into()),
        boot_args: "console=ttyS0".to_owned(),
    };
    sends!(
        |api| api.boot_source(&source),
        "PUT /boot-source",
        json!({
            "kernel_image_path": "/k/vmlinuz",
            "initrd_path": "/k/initramfs",
            "boot_args": "console=ttyS0",
        })
    );
    source.initrd_path = None;
    sends!(
        |api| api.boot_source(&source),
        "PUT /boot-source",
        json!({ "kernel_image_path": "/k/vmlinuz", "boot_args": "console=ttyS0" })
    );
    for (cache_type, word) in [
        (CacheType::Unsafe, "Unsafe"),
        (CacheType::Writeback, "Writeback"),
    ] {
        let drive = Drive {
            drive_id: "root".to_owned(),
            path_on_host: "/run/cowslip/self/rootfs".into(),
            is_root_device: false,
            is_read_only: false,
            cache_type,
            rate_limiter: None,
        };
        sends!(
            |api| api.drive(&drive),
            "PUT /drives/root",
            json!({
                "drive_id": "root",
                "path_on_host": "/run/cowslip/self/rootfs",
                "is_root_device": false,
                "is_read_only": false,
                "cache_type": word,
            })
        );
    }
    let drive = Drive {
        drive_id: "root".to_owned(),
        path_on_host: "/d".into(),
        is_root_device: false,
        is_read_only: false,
        cache_type: CacheType::Unsafe,
        rate_limiter: Some(RateLimiter {
            bandwidth: Some(TokenBucket::per_second(1 << 20)),
            ops: None,
        }),
    };
    sends!(
        |api| api.drive(&drive),
        "PUT /drives/root",
        json!({
            "drive_id": "root",
            "path_on_host": "/d",
            "is_root_device": false,
            "is_read_only": false,
            "cache_type": "Unsafe",
            "rate_limiter": { "bandwidth": { "size": 1_048_576, "refill_time": 1000 } },
        })
    );
    let mut machine = MachineConfiguration {
        vcpu_count: 2,
        mem_size_mib: 256,
        track_dirty_pages: true,
        cpu_template: None,
    };
    sends!(
        |api| api.machine(&machine),
        "PUT /machine-config",
        json!({ "vcpu_count": 2, "mem_size_mib": 256, "track_dirty_pages": true })
    );
    machine.cpu_template = Some(NamedCpuTemplate::T2CL);
    sends!(
        |api| api.machine(&machine),
        "PUT /machine-config",
        json!({
            "vcpu_count": 2,
            "mem_size_mib": 256,
            "track_dirty_pages": true,
            "cpu_template": "T2CL",
        })
    );
    let custom = json!({ "msr_modifiers": [] });
    sends!(
        |api| api.cpu(custom.as_object().unwrap()),
        "PUT /cpu-config",
        custom
    );
    let vsock = Vsock {
        guest_cid: 3,
        uds_path: "/run/cowslip/self/vsock".into(),
    };
    sends!(
        |api| api.vsock(&vsock),
        "PUT /vsock",
        json!({ "guest_cid": 3, "uds_path": "/run/cowslip/self/vsock" })
    );
    sends!(|api| api.entropy(&Entropy {}), "PUT /entropy", json!({}));
    let balloon = Balloon {
        amount_mib: 0,
        deflate_on_oom: true,
        free_page_reporting: false,
    };
    sends!(
        |api| api.balloon(&balloon),
        "PUT /balloon",
        json!({ "amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": false })
    );
    sends!(
        |api| api.start(),
        "PUT /actions",
        json!({ "action_type": "InstanceStart" })
    );
    sends!(|api| api.pause(), "PATCH /vm", json!({ "state": "Paused" }));
    sends!(
        |api| api.resume(),
        "PATCH /vm",
        json!({ "state": "Resumed" })
    );
}

#[tokio::test]
async fn snapshots_are_asked_for_as_firecracker_takes_them() {
    for (snapshot_type, word) in [(SnapshotKind::Full, "Full"), (SnapshotKind::Diff, "Diff")] {
        let create = SnapshotCreate {
            snapshot_type,
            snapshot_path: "/c/state".into(),
            mem_file_path: "/c/memory".into(),
        };
        sends!(
            |api| api.create_snapshot(&create),
            "PUT /snapshot/create",
            json!({ "snapshot_type": word, "snapshot_path": "/c/state", "mem_file_path": "/c/memory" })
        );
    }
    let mut load = SnapshotLoad {
        state: "/c/state".into(),
        memory: "/c/memory".into(),
        track_dirty_pages: false,
        vsock: None,
    };
    let mut body = json!({
        "snapshot_path": "/c/state",
        "mem_backend": { "backend_type": "File", "backend_path": "/c/memory" },
        "track_dirty_pages": false,
        "resume_vm": false,
    });
    sends!(
        |api| api.load_snapshot(&load),
        "PUT /snapshot/load",
        body.clone()
    );
    load.vsock = Some("/j/vsock".into());
    body["vsock_override"] = json!({ "uds_path": "/j/vsock" });
    sends!(
        |api| api.load_snapshot(&load),
        "PUT /snapshot/load",
        body.clone()
    );
}

#[tokio::test]
async fn answers_are_read() {
    let parts = peer();
    let (api, peer) = &parts;
    for (word, state) in [
        ("Not started", InstanceState::NotStarted),
        ("Running", InstanceState::Running),
        ("Paused", InstanceState::Paused),
    ] {
        let answer = json!({
            "id": "a-b", "state": word, "vmm_version": "1.16.1", "app_name": "Firecracker"
        });
        let answer = with_body(200, &answer.to_string());
        let (instance, got) = tokio::join!(api.instance(), peer.serve(&answer));
        let instance = instance.unwrap();
        assert_eq!((instance.id.as_str(), instance.state), ("a-b", state));
        assert_eq!((got.line.as_str(), got.body), ("GET / HTTP/1.1", None));
    }
    let answer = with_body(200, r#"{"firecracker_version":"1.16.1"}"#);
    let (version, got) = tokio::join!(api.version(), peer.serve(&answer));
    assert_eq!(version.unwrap(), "1.16.1");
    assert_eq!(got.line, "GET /version HTTP/1.1");
    let answer = json!({
        "drives": [{ "drive_id": "root", "path_on_host": "/d", "socket": null }],
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 512, "smt": false, "track_dirty_pages": true },
        "vsock": { "guest_cid": 3, "uds_path": "/v" },
    });
    let answer = with_body(200, &answer.to_string());
    let (configuration, got) = tokio::join!(api.configuration(), peer.serve(&answer));
    let configuration = configuration.unwrap();
    assert_eq!(got.line, "GET /vm/config HTTP/1.1");
    assert_eq!(
        configuration.drives[0].path_on_host.as_deref(),
        Some(Path::new("/d"))
    );
    assert_eq!(
        configuration.machine,
        ConfiguredMachine {
            vcpu_count: 2,
            mem_size_mib: 512,
            track_dirty_pages: true
        }
    );
}

#[tokio::test]
async fn a_fault_is_told_in_firecrackers_own_words() {
    let parts = peer();
    let fault = with_body(
        400,
        r#"{"fault_message":"The kernel file\u001b[2J\ncannot be opened"}"#,
    );
    let (failed, _) = exchange(|api| api.start(), &parts, &fault).await;
    let error: ApiError = Result::<(), _>::unwrap_err(failed);
    assert!(
        matches!(&error, ApiError::Refused { status: 400, .. }),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "PUT /actions: The kernel file [2J; cannot be opened"
    );
}

#[tokio::test]
async fn a_refusal_without_a_fault_is_told_too() {
    let cases = [
        (
            "HTTP/1.1 400 \r\nContent-Length: 0\r\n\r\n".to_owned(),
            "PATCH /vm: it was refused with status 400, without a word",
        ),
        (
            with_body(503, "Too many open connections"),
            "PATCH /vm: Too many open connections",
        ),
        (
            with_body(400, r#"{"error":"x"}"#),
            r#"PATCH /vm: {"error":"x"}"#,
        ),
    ];
    for (answer, expected) in cases {
        let parts = peer();
        let (failed, _) = exchange(|api| api.pause(), &parts, &answer).await;
        let error = failed.unwrap_err();
        assert!(matches!(&error, ApiError::Refused { .. }), "{error:?}");
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn what_is_no_answer_is_a_broken_connection() {
    let answers = [
        "".to_owned(),
        "HTTP/1.1 20".to_owned(),
        "HTTP/1.1 400 \r\nContent-Length: 40\r\n\r\n{\"fault_mess".to_owned(),
        "<html>\r\n\r\n".to_owned(),
        "\0\0\0\0\0\0\0\0".to_owned(),
        // More than any answer has.
        with_body(200, &"x".repeat(300 << 10)),
    ];
    for answer in answers {
        let parts = peer();
        let (failed, _) = exchange(|api| api.instance(), &parts, &answer).await;
        let error = failed.unwrap_err();
        assert!(
            matches!(&error, ApiError::Closed { .. }),
            "{answer:.40}: {error:?}"
        );
        assert!(error.to_string().starts_with("GET /: "), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_names_its_request() {
    let answers = [
        "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n".to_owned(),
        NO_CONTENT.to_owned(),
        with_body(200, "{"),
        with_body(200, r#"{"id":"a","state":"Dreaming","vmm_version":"9"}"#),
    ];
    for answer in answers {
        let parts = peer();
        let (failed, _) = exchange(|api| api.instance(), &parts, &answer).await;
        let error = failed.unwrap_err();
        assert!(matches!(&error, ApiError::Unreadable { .. }), "{error:?}");
        assert!(error.to_string().starts_with("GET /: "), "{error}");
    }
}

#[tokio::test]
async fn nobody_at_the_socket_is_told_with_its_path() {
    let (api, peer) = peer();
    // The file stays, as that of a Firecracker that was killed does.
    drop(peer.listener);
    let error = api.start().await.unwrap_err();
    assert!(matches!(&error, ApiError::Closed { .. }), "{error:?}");
    assert!(error.to_string().contains("/api"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_firecracker_is_given_up_but_not_for_a_snapshot() {
    let (api, peer) = peer();
    let error = api.pause().await.unwrap_err();
    assert!(matches!(&error, ApiError::TimedOut { .. }), "{error:?}");
    assert!(error.to_string().contains("60 s"), "{error}");

    let create = SnapshotCreate {
        snapshot_type: SnapshotKind::Full,
        snapshot_path: "/s".into(),
        mem_file_path: "/m".into(),
    };
    let load = SnapshotLoad {
        state: "/s".into(),
        memory: "/m".into(),
        track_dirty_pages: false,
        vsock: None,
    };
    let late = async {
        // The request that was given up.
        peer.take().await;
        for _ in 0..2 {
            let (_, mut stream) = peer.take().await;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            stream.write_all(NO_CONTENT.as_bytes()).await.unwrap();
        }
    };
    let ask = async {
        api.create_snapshot(&create).await.unwrap();
        api.load_snapshot(&load).await.unwrap();
    };
    tokio::join!(ask, late);
}

#[tokio::test]
async fn a_firecracker_that_ends_in_the_middle_of_a_snapshot_is_noticed() {
    let (api, peer) = peer();
    let create = SnapshotCreate {
        snapshot_type: SnapshotKind::Full,
        snapshot_path: "/s".into(),
        mem_file_path: "/m".into(),
    };
    let end = async { drop(peer.take().await) };
    let (failed, ()) = tokio::join!(api.create_snapshot(&create), end);
    assert!(matches!(failed, Err(ApiError::Closed { .. })), "{failed:?}");
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_before_anything_is_sent() {
    use std::os::unix::ffi::OsStringExt;
    let api = Api::new("/nonexistent/api".into());
    let vsock = Vsock {
        guest_cid: 3,
        uds_path: PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff])),
    };
    let error = api.vsock(&vsock).await.unwrap_err();
    assert!(matches!(&error, ApiError::Unsendable { .. }), "{error:?}");
}

#[tokio::test]
async fn the_socket_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let waiting = tokio::spawn(Api::wait(socket.clone()));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    let _listener = UnixListener::bind(&socket).unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_socket_that_is_bound_and_not_listened_on_yet_is_waited_for() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let server = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let waiting = tokio::spawn(Api::wait(path));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    listen(&server, 1).unwrap();
    // As Firecracker's log does.
    std::fs::write(dir.path().join("monitor.log"), "listening").unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_socket_can_only_come_to_a_directory() {
    let error = Api::wait("/nonexistent/api".into()).await.unwrap_err();
    assert!(matches!(&error, ApiError::Watch(_)), "{error:?}");
}
