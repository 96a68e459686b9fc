//! Debian's docker-registry, with images that skopeo pushed.

use std::path::Path;

use cowslip_image::BlobDigest;
use cowslip_registry::{Credentials, Pull, PullError};
use cowslip_test_parts::Registry;

use crate::bench::{Bench, reference, whole};
use crate::images::{Layer, double, layer};
use crate::peer::Files;

/// Of its own authority, for 127.0.0.1 until 2126.
const CERTIFICATE: &str = include_str!("certificate.pem");
const KEY: &str = include_str!("key.pem");

/// Pushes the image `a/b:latest` of a registry's files.
fn push(registry: &Registry, files: &Files) {
    let layout = tempfile::tempdir().unwrap();
    write_layout(layout.path(), files);
    registry.push(layout.path(), "latest", "a/b:latest");
}

fn write_layout(directory: &Path, files: &Files) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for (_, bytes) in files.values() {
        std::fs::write(blobs.join(BlobDigest::of(bytes).hex()), bytes).unwrap();
    }
    let (kind, bytes) = &files["/v2/a/b/manifests/latest"];
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": kind, "digest": BlobDigest::of(bytes).to_string(), "size": bytes.len(),
        "annotations": { "org.opencontainers.image.ref.name": "latest" },
    }] });
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        directory.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

fn image() -> (Vec<Layer>, Files) {
    let layers: Vec<_> = (0..5)
        .map(|n| layer(&format!("layer{n}"), 200_000))
        .collect();
    let files = double(&layers, &layers[..2]);
    (layers, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_as_it_was_pushed() {
    let (layers, files) = image();
    let Some(registry) = Registry::open() else {
        return;
    };
    push(&registry, &files);
    let bench = Bench::new();
    // As a pull that was interrupted leaves it.
    std::fs::write(bench.partial(&layers[0]), &layers[0].bytes[..77_777]).unwrap();
    let pulled = bench.pull(registry.address(), Pull::Always).await.unwrap();
    bench.assert_readable(&pulled, 5);
    assert_eq!(
        pulled.digest,
        BlobDigest::of(&files["/v2/a/b/manifests/latest"].1)
    );
    for layer in &layers {
        assert_eq!(bench.blob(layer), layer.bytes);
    }
    let nothing = format!("{}-not", reference(registry.address()))
        .parse()
        .unwrap();
    let anonymous = &Credentials::Anonymous;
    let platform = crate::bench::amd64();
    let pull = bench.puller.pull(
        &nothing,
        &platform,
        Pull::Missing,
        anonymous,
        &bench.progress,
    );
    let error = pull.await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("manifest unknown"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_users() {
    let (layers, files) = image();
    let Some(registry) = Registry::with_users() else {
        return;
    };
    push(&registry, &files);
    let user = |password: &str| Credentials::Basic {
        user: "user".into(),
        password: password.into(),
    };
    let bench = Bench::new();
    for credentials in [Credentials::Anonymous, user("wrong")] {
        let error = bench
            .pull_as(registry.address(), Pull::Missing, &credentials)
            .await
            .unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains("log in with"), "{error}");
    }
    let pulled = bench
        .pull_as(registry.address(), Pull::Missing, &user("right"))
        .await
        .unwrap();
    bench.assert_readable(&pulled, layers.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tls() {
    let (layers, files) = image();
    let Some(registry) = Registry::with_tls(CERTIFICATE, KEY) else {
        return;
    };
    push(&registry, &files);
    let host = || registry.address().to_string().parse().unwrap();
    let bench = Bench::with(|config| config.https.push(host()));
    let error = bench
        .pull(registry.address(), Pull::Missing)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Tls { .. }), "{}", whole(&error));
    assert!(
        error.to_string().contains("registries.ca_certificates"),
        "{error}"
    );

    let certificates = bench.scratch().join("certificates.pem");
    std::fs::write(&certificates, CERTIFICATE).unwrap();
    let trusting = Bench::with(|config| {
        config.https.push(host());
        config.ca_certificates.push(certificates);
    });
    let pulled = trusting
        .pull(registry.address(), Pull::Missing)
        .await
        .unwrap();
    trusting.assert_readable(&pulled, layers.len() as u64);

    // The other way around: it has no TLS, and should.
    let Some(plain) = Registry::open() else {
        return;
    };
    let bench = Bench::with(|config| {
        config
            .https
            .push(plain.address().to_string().parse().unwrap())
    });
    let error = bench
        .pull(plain.address(), Pull::Missing)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Tls { .. }), "{}", whole(&error));
    assert!(
        error.to_string().contains("registries.plain_http"),
        "{error}"
    );
}

#[test]
fn certificates_that_are_none_are_named() {
    let bench = Bench::new();
    let path = bench.scratch().join("none.pem");
    let open = || {
        let cache = cowslip_registry::Cache::open(&bench.cache()).unwrap();
        let config = cowslip_registry::Config {
            ca_certificates: vec![path.clone()],
            ..Default::default()
        };
        cowslip_registry::Puller::new(cache, config)
            .unwrap_err()
            .to_string()
    };
    assert!(
        open().contains("cannot read the certificates in"),
        "{}",
        open()
    );
    std::fs::write(&path, b"no certificate").unwrap();
    assert!(open().contains("has no certificate in PEM"), "{}", open());
}
