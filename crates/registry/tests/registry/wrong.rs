//! Registries that send what they should not, or refuse.

use cowslip_image::BlobDigest;
use cowslip_registry::{Pull, PullError};

use crate::bench::{Bench, whole};
use crate::broken::long;
use crate::images::{Layer, MANIFEST, single, tag};
use crate::peer::{Answer, Peer, Piece};

type Reply = Box<dyn Fn() -> Answer + Send + Sync>;
type PlainReply = fn() -> Answer;

/// A pull that must fail, and leave nothing of its layer.
async fn refused(answer: impl Fn(&Layer) -> Answer + Send + Sync + 'static) -> PullError {
    let (bench, long) = (Bench::new(), long());
    let (path, of) = (long.path(), long.clone());
    let peer = Peer::start(single(std::slice::from_ref(&long)), move |asked| {
        asked.path.ends_with(&path).then(|| answer(&of))
    })
    .await;
    let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
    assert!(!bench.partial(&long).exists());
    assert!(
        !crate::bench::names(&bench.cache().join("blobs/sha256"))
            .contains(&long.digest().hex().to_owned())
    );
    error
}

#[tokio::test]
async fn other_content_is_refused_with_both_digests() {
    let wrong = |long: &Layer| {
        let mut bytes = long.bytes.clone();
        bytes[500_000] ^= 1;
        bytes
    };
    match refused(move |long| Answer::of(200, &wrong(long))).await {
        PullError::Digest {
            found, expected, ..
        } => {
            assert_eq!(
                (found, expected),
                (BlobDigest::of(&wrong(&long())), long().digest())
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn other_lengths_are_refused() {
    let size = long().bytes.len() as u64;
    let mut longer = long().bytes;
    longer.push(0);
    let shorter = long().bytes[..600_000].to_vec();
    let told = longer.clone();
    let cases: Vec<(&str, u64, Reply)> = vec![
        (
            "said to be longer",
            size + 1,
            Box::new(move || Answer::of(200, &told)),
        ),
        (
            "longer",
            size + 1,
            Box::new(move || Answer::pieces(200, None, vec![Piece::Bytes(longer.clone())])),
        ),
        (
            "shorter",
            600_000,
            Box::new(move || Answer::pieces(200, None, vec![Piece::Bytes(shorter.clone())])),
        ),
        (
            "said to be shorter",
            5,
            Box::new(|| Answer::of(200, b"short")),
        ),
    ];
    for (name, length, answer) in cases {
        match refused(move |_| answer()).await {
            PullError::Size {
                found, expected, ..
            } => assert_eq!((found, expected), (length, size), "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_endless_layer_is_not_read_to_its_end() {
    let error = refused(|_| Answer::pieces(200, None, vec![Piece::Endless])).await;
    let PullError::Size {
        found, expected, ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert!(found > expected && found < expected + (4 << 20), "{found}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    for status in [408, 429, 500, 503] {
        let long = long();
        let peer = Peer::start(single(std::slice::from_ref(&long)), move |asked| {
            (asked.before == 0).then(|| Answer::of(status, b"").with("retry-after", "0"))
        })
        .await;
        let bench = Bench::new();
        bench.pull(peer.address, Pull::Missing).await.unwrap();
        assert_eq!(bench.blob(&long), long.bytes);
        // Each kind of request failed once.
        assert_eq!(peer.asked().len(), 8, "{status}");
    }
}

#[tokio::test]
async fn what_does_not_pass_is_asked_once() {
    for status in [400, 410, 451] {
        let long = long();
        let path = long.path();
        let peer = Peer::start(single(std::slice::from_ref(&long)), move |asked| {
            let refusal = || Answer::refusal(status, "DENIED", "not\u{1b}[31m today");
            asked.path.ends_with(&path).then(refusal)
        })
        .await;
        let error = Bench::new()
            .pull(peer.address, Pull::Missing)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains(&format!("status {status}")),
            "{error}"
        );
        assert!(!error.to_string().contains('\u{1b}'));
        assert_eq!(peer.count("GET", &long.path()), 1);
    }
}

#[tokio::test]
async fn a_rate_limit_is_told_with_its_end() {
    let long = long();
    let peer = Peer::start(single(&[long]), |_| {
        Some(Answer::refusal(429, "TOOMANYREQUESTS", "slow down").with("retry-after", "3600"))
    })
    .await;
    let error = Bench::new()
        .pull(peer.address, Pull::Missing)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::RateLimited { .. }), "{error:?}");
    assert!(
        error.to_string().contains("try again in 3600 seconds"),
        "{error}"
    );
    // Nobody waits for an hour.
    assert_eq!(peer.asked().len(), 1);
}

#[tokio::test]
async fn documents_have_a_bound() {
    let cases: [(&str, PlainReply); 2] = [
        ("said", || {
            Answer::pieces(200, Some(5 << 20), vec![Piece::Endless])
        }),
        ("endless", || {
            Answer::pieces(200, None, vec![Piece::Endless])
        }),
    ];
    for (name, answer) in cases {
        for path in ["/manifests/", "/blobs/"] {
            let peer = Peer::start(single(&[]), move |asked| {
                (asked.method == "GET" && asked.path.contains(path)).then(answer)
            })
            .await;
            let bench = Bench::new();
            let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
            assert!(
                matches!(error, PullError::TooLong { .. }),
                "{name} {path}: {error:?}"
            );
            // As much as was on its way when it was let go of.
            assert!(peer.sent() < 16 << 20, "{name} {path}: {}", peer.sent());
        }
    }
}

#[tokio::test]
async fn damaged_documents_are_not_kept() {
    let peer = Peer::start(single(&[long()]), |asked| {
        (asked.method == "GET" && asked.path.contains("/manifests/"))
            .then(|| Answer::of(200, b"{}"))
    })
    .await;
    let bench = Bench::new();
    let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Digest {
                what: "manifest",
                ..
            }
        ),
        "{error:?}"
    );
    bench.assert_only(&[]);
}

// A document that went bad in the cache is got again; a layer that did is found by the importer.
#[tokio::test]
async fn what_went_bad_in_the_cache_is_got_again() {
    let long = long();
    let peer = Peer::plain(single(std::slice::from_ref(&long))).await;
    let bench = Bench::new();
    let pulled = bench.pull(peer.address, Pull::Missing).await.unwrap();
    let path = |digest: &BlobDigest| bench.cache().join("blobs/sha256").join(digest.hex());
    let manifest = path(pulled.image.digest().unwrap());
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[0] = b'[';
    std::fs::write(&manifest, bytes).unwrap();
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!(
        peer.count("GET", &format!("/{}", pulled.image.digest().unwrap())),
        2
    );

    assert_eq!(
        pulled.lease.discard_damaged().unwrap().len(),
        1,
        "the old manifest, which it has open"
    );
    let pulled = bench.pull(peer.address, Pull::Missing).await.unwrap();
    std::fs::write(path(&long.digest()), vec![0; long.bytes.len()]).unwrap();
    assert_eq!(pulled.lease.discard_damaged().unwrap(), [long.digest()]);
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!(bench.blob(&long), long.bytes);
    assert_eq!(pulled.lease.discard_damaged().unwrap(), [long.digest()]);
}

#[tokio::test]
async fn no_link_in_the_cache_is_followed() {
    let (long, bench) = (long(), Bench::new());
    let target = bench.scratch().join("target");
    std::fs::write(&target, b"kept").unwrap();
    std::os::unix::fs::symlink(&target, bench.partial(&long)).unwrap();
    let peer = Peer::plain(single(std::slice::from_ref(&long))).await;
    let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
    assert!(matches!(error, PullError::Cache(_)), "{error:?}");
    assert!(
        whole(&error).contains("symbolic links"),
        "{}",
        whole(&error)
    );
    assert_eq!(std::fs::read(&target).unwrap(), b"kept");
}

// An image that lies about a layer must not take it from the others that have it.
#[tokio::test]
async fn a_wrong_size_costs_nobody_a_blob() {
    let long = long();
    let good = single(std::slice::from_ref(&long));
    let size = long.bytes.len();
    let peer = Peer::plain(good.clone()).await;
    let bench = Bench::new();
    bench.pull(peer.address, Pull::Always).await.unwrap();
    for wrong in [size - 1, size + 1] {
        let mut files = good.clone();
        let manifest = String::from_utf8(good["/v2/a/b/manifests/latest"].1.clone()).unwrap();
        let lie = manifest.replace(&size.to_string(), &wrong.to_string());
        assert_ne!(lie, manifest);
        tag(&mut files, "latest", MANIFEST, lie.as_bytes());
        peer.replace(files);
        match bench.pull(peer.address, Pull::Always).await.unwrap_err() {
            PullError::Size {
                found, expected, ..
            } => {
                assert_eq!((found, expected), (size as u64, wrong as u64));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(bench.blob(&long), long.bytes);
    }
    // One that did lose its end is got again, and so is a document.
    peer.replace(good.clone());
    let manifest = BlobDigest::of(&good["/v2/a/b/manifests/latest"].1);
    for digest in [long.digest(), manifest] {
        let path = bench.cache().join("blobs/sha256").join(digest.hex());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        bench.pull(peer.address, Pull::Missing).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}
