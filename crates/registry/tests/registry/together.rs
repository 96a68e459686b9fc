//! Several pulls at once.

use std::sync::Arc;

use cowslip_image::{BlobDigest, Platform};
use cowslip_registry::{Credentials, NoProgress, Pull};

use crate::bench::{Bench, amd64, puller, reference};
use crate::images::{double, layer, single};
use crate::peer::{Answer, Peer, Piece};

/// All but tags, each exactly once.
fn assert_once(peer: &Peer) {
    let asked = peer.asked();
    let mut paths: Vec<_> = asked
        .iter()
        .filter(|asked| asked.method == "GET")
        .map(|asked| asked.path.clone())
        .collect();
    let all = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), all, "{asked:#?}");
}

// covers R62
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_pulls_of_one_image_work_once() {
    let layers: Vec<_> = (0..6)
        .map(|n| layer(&format!("layer{n}"), 50_000))
        .collect();
    let files = double(&layers, &layers[..3]);
    let peer = Peer::plain(files.clone()).await;
    let bench = Arc::new(Bench::new());
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (bench, address) = (Arc::clone(&bench), peer.address);
            tokio::spawn(async move { bench.pull(address, Pull::Missing).await.unwrap().digest })
        })
        .collect();
    let mut digests = Vec::new();
    for pull in pulls {
        digests.push(pull.await.unwrap());
    }
    assert_eq!(
        digests,
        vec![BlobDigest::of(&files["/v2/a/b/manifests/latest"].1); 8]
    );
    assert_once(&peer);
    // Index, manifest, config, layers.
    assert_eq!(peer.count("GET", ""), 9);
}

#[tokio::test]
async fn the_second_goes_on_where_the_first_was_dropped() {
    let long = layer("long", 300_000);
    let (bytes, path) = (long.bytes.clone(), long.path());
    let bench = Arc::new(Bench::new());
    let peer = Peer::start(single(std::slice::from_ref(&long)), move |asked| {
        let pieces = vec![Piece::Bytes(bytes[..100_000].to_vec()), Piece::Stall];
        (asked.path.ends_with(&path) && asked.before == 0)
            .then(|| Answer::pieces(200, Some(bytes.len()), pieces))
    })
    .await;
    let address = peer.address;
    let pull =
        |bench: Arc<Bench>| async move { bench.pull(address, Pull::Missing).await.map(drop) };
    let first = tokio::spawn(pull(Arc::clone(&bench)));
    bench.progress.at(100_000).await;
    let second = tokio::spawn(pull(Arc::clone(&bench)));
    // The second has been told of the image, and must not ask for the layer.
    let is_head = |asked: &crate::peer::Asked| asked.method == "HEAD" && asked.before == 1;
    peer.until(is_head).await;
    assert_eq!(peer.count("GET", &long.path()), 1);
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!(bench.blob(&long), long.bytes);
    let ranges: Vec<_> = peer
        .asked()
        .into_iter()
        .filter(|asked| asked.path.ends_with(&long.path()))
        .collect();
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[1].range.as_deref(), Some("bytes=100000-"));
}

// Two caches that know nothing of one another are what two processes are to the kernel's locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_caches_in_one_directory_share_the_work() {
    let layers: Vec<_> = (0..4)
        .map(|n| layer(&format!("layer{n}"), 200_000))
        .collect();
    let peer = Peer::plain(single(&layers)).await;
    let bench = Bench::new();
    let others: Vec<_> = (0..4)
        .map(|_| Arc::new(puller(&bench.cache(), |_| {})))
        .collect();
    let pulls: Vec<_> = others
        .iter()
        .map(|puller| {
            let (puller, reference) = (Arc::clone(puller), reference(peer.address));
            tokio::spawn(async move {
                let anonymous = &Credentials::Anonymous;
                let platform: Platform = amd64();
                puller
                    .pull(&reference, &platform, Pull::Always, anonymous, &NoProgress)
                    .await
                    .unwrap()
            })
        })
        .collect();
    for pull in pulls {
        bench.assert_readable(&pull.await.unwrap(), 4);
    }
    for layer in &layers {
        assert_eq!(peer.count("GET", &layer.path()), 1);
        assert_eq!(bench.blob(layer), layer.bytes);
    }
    assert_eq!(
        crate::bench::names(&bench.cache().join("partial")),
        Vec::<String>::new()
    );
}
