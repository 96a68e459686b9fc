//! What is asked of a registry, and what is not asked again.

use cowslip_image::{BlobDigest, ImageError};
use cowslip_registry::{Credentials, NoProgress, Pull, PullError};

use crate::bench::{Bench, amd64, reference, whole};
use crate::images::{INDEX, MANIFEST, double, image, layer, single, tag};
use crate::peer::{Answer, Files, Peer};

#[tokio::test]
async fn only_what_the_platform_needs_is_fetched() {
    let (base, top, other) = (
        layer("base", 300_000),
        layer("top", 1000),
        layer("other", 1000),
    );
    let files = double(&[base.clone(), top.clone()], &[base.clone(), other.clone()]);
    let peer = Peer::plain(files.clone()).await;
    let bench = Bench::new();
    let pulled = bench.pull(peer.address, Pull::Missing).await.unwrap();
    bench.assert_readable(&pulled, 2);
    assert_eq!(pulled.reference, reference(peer.address));
    let index = &files["/v2/a/b/manifests/latest"];
    assert_eq!(
        (pulled.digest, index.0.as_str()),
        (BlobDigest::of(&index.1), INDEX)
    );
    assert_eq!(peer.count("GET", &other.path()), 0);
    // The tag once, without its content; index, manifest, config and two layers.
    assert_eq!(peer.count("HEAD", ""), 1);
    assert_eq!(peer.count("GET", ""), 5);
    assert_eq!(bench.blob(&base), base.bytes);
    assert_eq!(
        *bench.progress.total.lock().unwrap(),
        (base.bytes.len() + top.bytes.len()) as u64
    );
    assert_eq!(bench.progress.done.lock().unwrap().len(), 2);

    // The other platform shares the index and a layer.
    peer.forget();
    let arm64 = "linux/arm64".parse().unwrap();
    let reference = reference(peer.address);
    let pull = bench.puller.pull(
        &reference,
        &arm64,
        Pull::Missing,
        &Credentials::Anonymous,
        &NoProgress,
    );
    let pulled = pull.await.unwrap();
    assert_eq!(pulled.image.layers().len(), 2);
    assert_eq!(peer.count("GET", ""), 3);
    assert_eq!(peer.count("GET", &other.path()), 1);
}

#[tokio::test]
async fn missing_always_and_never() {
    let layers = [layer("base", 1000)];
    let peer = Peer::plain(single(&layers)).await;
    let bench = Bench::new();
    let error = bench.pull(peer.address, Pull::Never).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is not in the cache: it was not pulled before"),
        "{error}"
    );
    assert!(peer.asked().is_empty());

    bench.pull(peer.address, Pull::Missing).await.unwrap();
    peer.forget();
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    bench.pull(peer.address, Pull::Never).await.unwrap();
    assert!(peer.asked().is_empty());
    bench.pull(peer.address, Pull::Always).await.unwrap();
    assert_eq!(
        (peer.count("HEAD", "/manifests/latest"), peer.asked().len()),
        (1, 1)
    );

    // A layer is lost: it is said by name, and got again alone.
    std::fs::remove_file(
        bench
            .cache()
            .join("blobs/sha256")
            .join(layers[0].digest().hex()),
    )
    .unwrap();
    peer.forget();
    match bench.pull(peer.address, Pull::Never).await.unwrap_err() {
        PullError::NotCached { missing, .. } => {
            assert_eq!(
                missing,
                format!("its layer {} is missing", layers[0].digest())
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(peer.asked().is_empty());
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!(
        (peer.count("GET", &layers[0].path()), peer.count("GET", "")),
        (1, 1)
    );
}

#[tokio::test]
async fn a_new_top_layer_is_all_that_is_downloaded() {
    let (base, old, new) = (
        layer("base", 200_000),
        layer("old", 1000),
        layer("new", 1000),
    );
    let peer = Peer::plain(single(&[base.clone(), old])).await;
    let bench = Bench::new();
    let first = bench.pull(peer.address, Pull::Always).await.unwrap();
    peer.replace(single(&[base.clone(), new.clone()]));
    peer.forget();
    // What was pulled before is what it is, until somebody asks for the new one.
    let same = bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!((same.digest, peer.asked().len()), (first.digest.clone(), 0));
    let second = bench.pull(peer.address, Pull::Always).await.unwrap();
    assert_ne!(second.digest, first.digest);
    bench.assert_readable(&second, 2);
    assert_eq!(peer.count("GET", &base.path()), 0);
    assert_eq!(peer.count("GET", &new.path()), 1);
    // With the manifest and the config.
    assert_eq!(peer.count("GET", ""), 3);
}

#[tokio::test]
async fn a_digest_is_what_is_pulled() {
    let mut files = single(&[layer("tagged", 100)]);
    let other = image(&mut files, "amd64", &[layer("by digest", 100)]);
    let wrong = BlobDigest::of(b"something else");
    files.insert(
        format!("/v2/a/b/manifests/{wrong}"),
        (MANIFEST.to_owned(), other.clone()),
    );
    let peer = Peer::plain(files).await;
    let bench = Bench::new();
    let pull = async |digest: &BlobDigest| {
        let reference = format!("{}@{digest}", reference(peer.address))
            .parse()
            .unwrap();
        let anonymous = &Credentials::Anonymous;
        bench
            .puller
            .pull(&reference, &amd64(), Pull::Missing, anonymous, &NoProgress)
            .await
    };
    let pulled = pull(&BlobDigest::of(&other)).await.unwrap();
    assert_eq!(pulled.image.digest(), Some(&BlobDigest::of(&other)));
    assert_eq!(peer.count("HEAD", ""), 0);
    match pull(&wrong).await.unwrap_err() {
        PullError::Digest {
            found, expected, ..
        } => {
            assert_eq!((found, expected), (BlobDigest::of(&other), wrong));
        }
        other => panic!("{other:?}"),
    }
}

// Registries without HEAD, without the digest in a header, or with a type that says nothing.
#[tokio::test]
async fn plain_registries_will_do() {
    let layers = [layer("base", 1000)];
    for lacks in ["method", "digest", "type"] {
        let mut files = single(&layers);
        let manifest = files["/v2/a/b/manifests/latest"].1.clone();
        files.insert(
            "/v2/a/b/manifests/latest".into(),
            ("application/json".into(), manifest.clone()),
        );
        let peer = Peer::start(files, move |asked| match (asked.method.as_str(), lacks) {
            ("HEAD", "method") => Some(Answer::of(405, b"")),
            ("HEAD", "digest") => Some(Answer::of(200, &manifest).with("content-type", MANIFEST)),
            _ => None,
        })
        .await;
        let bench = Bench::new();
        bench.pull(peer.address, Pull::Always).await.unwrap();
        assert_eq!(bench.blob(&layers[0]), layers[0].bytes);
    }
}

#[tokio::test]
async fn what_is_not_there_is_told() {
    let bench = Bench::new();
    let peer = Peer::plain(Files::new()).await;
    let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
    let expected = format!(
        "has no image {} (\"manifest unknown\")",
        reference(peer.address)
    );
    assert!(error.to_string().contains(&expected), "{error}");

    let mut files = single(&[]);
    let manifest = image(&mut files, "s390x", &[layer("a", 10)]);
    tag(&mut files, "latest", MANIFEST, &manifest);
    let peer = Peer::plain(files).await;
    match bench.pull(peer.address, Pull::Missing).await.unwrap_err() {
        PullError::Image {
            source: ImageError::Platform { available, .. },
            ..
        } => {
            assert!(available.contains("s390x"), "{available}");
        }
        other => panic!("{other:?}"),
    }

    let gone = layer("gone", 1000);
    let mut files = single(std::slice::from_ref(&gone));
    files.remove(&format!("/v2/a/b{}", gone.path()));
    let peer = Peer::plain(files).await;
    let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("has no layer {}", gone.digest())),
        "{error}"
    );
}

#[tokio::test]
async fn nobody_there_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Bench::new().pull(address, Pull::Missing).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error:?}");
    assert!(whole(&error).contains("refused"), "{}", whole(&error));
}

#[tokio::test]
async fn an_image_larger_than_the_cache_is_refused() {
    let layers = [layer("base", 1000)];
    let peer = Peer::plain(single(&layers)).await;
    let bench = Bench::with(|config| config.cache_limit = 500);
    let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
    assert!(
        matches!(error, PullError::TooLarge { limit: 500, .. }),
        "{error:?}"
    );
    assert_eq!(peer.count("GET", &layers[0].path()), 0);
}

#[tokio::test]
async fn mirrors_are_asked_first() {
    let (one, two) = (layer("one", 1000), layer("two", 1000));
    let files = single(&[one.clone(), two.clone()]);
    let registry = Peer::plain(files.clone()).await;
    let mut half = files.clone();
    half.remove(&format!("/v2/a/b{}", two.path()));
    let mirror = Peer::plain(half).await;
    let bench = Bench::with(|config| {
        let host = |address: std::net::SocketAddr| address.to_string().parse().unwrap();
        // Nobody is at the first one.
        let mirrors = vec!["127.0.0.1:1".parse().unwrap(), host(mirror.address)];
        config.mirrors.insert(host(registry.address), mirrors);
    });
    let user = Credentials::Basic {
        user: "user".into(),
        password: "secret".into(),
    };
    bench
        .pull_as(registry.address, Pull::Missing, &user)
        .await
        .unwrap();
    assert_eq!(mirror.count("GET", &one.path()), 1);
    assert_eq!(
        (registry.count("GET", &two.path()), registry.asked().len()),
        (1, 1)
    );
    // It cannot spoil what it serves.
    let bad = Peer::start(files, |asked| {
        asked
            .path
            .contains("/blobs/")
            .then(|| Answer::of(200, b"bad"))
    })
    .await;
    let bench = Bench::with(|config| {
        let host = |address: std::net::SocketAddr| address.to_string().parse().unwrap();
        config
            .mirrors
            .insert(host(registry.address), vec![host(bad.address)]);
    });
    bench.pull(registry.address, Pull::Missing).await.unwrap();
    assert_eq!(bench.blob(&one), one.bytes);
}

#[tokio::test]
async fn four_layers_come_at_a_time() {
    let layers: Vec<_> = (0..6)
        .map(|n| layer(&format!("layer{n}"), 20_000))
        .collect();
    let (release, released) = tokio::sync::watch::channel(false);
    let held = layers.clone();
    let peer = Peer::start(single(&layers), move |asked| {
        let layer = held.iter().find(|one| asked.path.ends_with(&one.path()))?;
        let mut released = released.clone();
        let go = async move { drop(released.wait_for(|go| *go).await) };
        Some(Answer::of(200, &layer.bytes).after(go))
    })
    .await;
    let bench = Bench::new();
    let watch = async {
        // The tag, the manifest and the config came before.
        peer.until_count(3 + 4).await;
        let asked = layers.iter().map(|one| peer.count("GET", &one.path()));
        assert_eq!(asked.sum::<usize>(), 4);
        release.send_replace(true);
    };
    let (pulled, ()) = tokio::join!(bench.pull(peer.address, Pull::Missing), watch);
    bench.assert_readable(&pulled.unwrap(), 6);
}
