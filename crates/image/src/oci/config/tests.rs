//! Configs as images have them, and as nobody should.

use serde_json::{Value, json};

use super::*;

fn read(config: Value) -> Result<ImageConfig, ImageError> {
    let document = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [] },
        "history": [{ "unknown": 1 }],
    });
    ImageConfig::read(document.to_string().as_bytes(), "config").map(|(config, _)| config)
}

fn field(config: Value) -> &'static str {
    match read(config) {
        Err(ImageError::Config { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_images_say_is_kept() {
    let config = read(json!({
        "User": "app:1000",
        "ExposedPorts": { "80/tcp": {}, "53/UDP": {}, "8080": {} },
        "Env": ["PATH=/bin", "EMPTY=", "LINES=a\nb=c"],
        "Entrypoint": ["/entry", "--flag"],
        "Cmd": "one",
        "WorkingDir": "/srv",
        "Labels": { "a": "b" },
        "StopSignal": "SIGRTMIN+3",
        "Volumes": { "/data": {} },
    }))
    .unwrap();
    assert_eq!(config.platform.to_string(), "linux/amd64");
    assert_eq!(config.env, ["PATH=/bin", "EMPTY=", "LINES=a\nb=c"]);
    assert_eq!(config.entrypoint, ["/entry", "--flag"]);
    assert_eq!(config.cmd, ["one"]);
    let ports: Vec<_> = config.exposed_ports.iter().map(String::as_str).collect();
    assert_eq!(ports, ["53/udp", "80/tcp", "8080/tcp"]);
    assert_eq!(config.user.as_deref(), Some("app:1000"));
    assert_eq!(config.working_dir.as_deref(), Some("/srv"));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGRTMIN+3"));
    assert_eq!(config.labels["a"], "b");
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<ImageConfig>(&text).unwrap(), config);
}

#[test]
fn what_is_null_or_empty_is_not_there() {
    let nothing = read(Value::Null).unwrap();
    assert_eq!(
        serde_json::to_value(&nothing).unwrap(),
        json!({ "platform": "linux/amd64" })
    );
    let nulls = read(json!({
        "User": "", "ExposedPorts": null, "Env": null, "Entrypoint": null, "Cmd": null,
        "WorkingDir": "", "Labels": null, "StopSignal": null,
    }));
    assert_eq!(nulls.unwrap(), nothing);
}

#[test]
fn what_cannot_be_used_is_named() {
    for variable in ["PATH", "=x", "", "A\0=b", "A=b\0"] {
        assert_eq!(field(json!({ "Env": [variable] })), "env", "{variable:?}");
    }
    let long = "x".repeat(MAX_ARGUMENT + 1);
    assert_eq!(field(json!({ "Env": [format!("A={long}")] })), "env");
    assert_eq!(field(json!({ "Env": vec!["A=b"; MAX_ITEMS + 1] })), "env");
    assert_eq!(field(json!({ "Entrypoint": ["a\0b"] })), "entrypoint");
    assert_eq!(field(json!({ "Cmd": [long] })), "cmd");
    for path in ["srv", "./srv", "/a\0b", &"/x".repeat(3000)] {
        assert_eq!(
            field(json!({ "WorkingDir": path })),
            "working directory",
            "{path:?}"
        );
    }
    for user in [
        ":",
        "a:",
        ":b",
        "a:b:c",
        "a b",
        "a\nb",
        "a\0",
        &"u".repeat(257),
    ] {
        assert_eq!(field(json!({ "User": user })), "user", "{user:?}");
    }
    for port in [
        "",
        "0/tcp",
        "65536/tcp",
        "80/icmp",
        "80-90/tcp",
        "-1",
        "80/tcp/x",
        "+80/tcp",
    ] {
        assert_eq!(
            field(json!({ "ExposedPorts": { port: {} } })),
            "exposed port",
            "{port:?}"
        );
    }
    for signal in ["SIG TERM", "TERM;id", "\u{1}", &"S".repeat(17)] {
        assert_eq!(
            field(json!({ "StopSignal": signal })),
            "stop signal",
            "{signal:?}"
        );
    }
    assert_eq!(field(json!({ "Labels": { "a\0": "" } })), "label");
    let labels: BTreeMap<String, String> = (0..20)
        .map(|n| (n.to_string(), "x".repeat(60_000)))
        .collect();
    assert_eq!(field(json!({ "Labels": labels })), "size");
    let error = read(json!({ "User": "evil\u{1b}[2J" }))
        .unwrap_err()
        .to_string();
    assert!(!error.contains('\u{1b}'), "{error}");
}

#[test]
fn a_document_that_is_none_is_damaged() {
    for text in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}}"#,
        r#"{"rootfs": {"type": "other"}}"#,
        r#"{"rootfs": {"type": "layers"}, "os": 1}"#,
        r#"{"rootfs": {"type": "layers"}, "rootfs": {"type": "layers"}}"#,
        &"[".repeat(100_000),
    ] {
        let error = ImageConfig::read(text.as_bytes(), "config").unwrap_err();
        assert!(
            matches!(error, ImageError::Document { .. }),
            "{text}: {error}"
        );
    }
    for platform in ["", "linux\u{1}", "li/nux"] {
        let document = json!({
            "architecture": "amd64", "os": platform, "rootfs": { "type": "layers" },
        });
        let error = ImageConfig::read(document.to_string().as_bytes(), "config").unwrap_err();
        let ImageError::Config { field, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(field, "platform");
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    let full = read(json!({
        "User": "app:1000",
        "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
        "Env": ["PATH=/bin", "LINES=a\nb=c"],
        "Entrypoint": ["/entry"],
        "Cmd": ["a", "b"],
        "WorkingDir": "/srv",
        "Labels": { "a": "\"b\"" },
        "StopSignal": "15",
    }))
    .unwrap();
    let layers = [BlobDigest::of(b"1"), BlobDigest::of(b"2")];
    for platform in ["linux/amd64", "linux/arm/v6"] {
        let platform: Platform = platform.parse().unwrap();
        let empty = ImageConfig::new(platform.clone());
        let full = ImageConfig {
            platform,
            ..full.clone()
        };
        for config in [empty, full] {
            let document = config.to_document(&layers);
            let (found, diff_ids) = ImageConfig::read(&document, "config").unwrap();
            assert_eq!((found, &diff_ids[..]), (config, &layers[..]));
        }
    }
}
