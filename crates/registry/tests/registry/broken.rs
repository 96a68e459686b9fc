//! Connections that break, stand still, and begin elsewhere than they should.

use std::sync::Arc;

use cowslip_registry::{Pull, PullError};

use crate::bench::Bench;
use crate::images::{Layer, layer, single};
use crate::peer::{Answer, Asked, Peer, Piece, start};

/// A layer of several pieces on its way.
pub(crate) fn long() -> Layer {
    layer("long", 700_000)
}

/// A registry with that layer, which answers the first request for it in another way.
async fn first_answer(
    long: &Layer,
    answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> Peer {
    let path = long.path();
    Peer::start(single(std::slice::from_ref(long)), move |asked| {
        (asked.path.ends_with(&path) && asked.before == 0).then(|| answer(asked))
    })
    .await
}

/// Sends the beginning, waits until it is in the cache, and does something else then.
fn beginning(
    bench: &Bench,
    long: &Layer,
    length: usize,
    then: fn() -> Piece,
) -> impl Fn(&Asked) -> Answer + use<> {
    let (bytes, farthest) = (long.bytes.clone(), bench.progress.farthest.clone());
    move |_| {
        let mut farthest = farthest.subscribe();
        let there = async move {
            farthest
                .wait_for(|farthest| *farthest >= length as u64)
                .await
                .unwrap();
        };
        let pieces = vec![
            Piece::Bytes(bytes[..length].to_vec()),
            Piece::After(Box::pin(there)),
            then(),
        ];
        Answer::pieces(200, Some(bytes.len()), pieces)
    }
}

/// What was asked for the layer, as ranges.
fn ranges(peer: &Peer, layer: &Layer) -> Vec<Option<usize>> {
    let asked = peer.asked();
    let of_layer = asked
        .iter()
        .filter(|asked| asked.path.ends_with(&layer.path()));
    of_layer
        .map(|asked| asked.range.as_deref().map(start))
        .collect()
}

#[tokio::test]
async fn a_broken_connection_is_gone_on_with() {
    let (bench, long) = (Bench::new(), long());
    let peer = first_answer(&long, beginning(&bench, &long, 400_000, || Piece::Break)).await;
    let pulled = bench.pull(peer.address, Pull::Missing).await.unwrap();
    bench.assert_readable(&pulled, 1);
    assert_eq!(bench.blob(&long), long.bytes);
    assert_eq!(ranges(&peer, &long), [None, Some(400_000)]);
    // Nothing is sent twice: what was sent is the layer, the manifest and the config.
    let documents: usize = single(std::slice::from_ref(&long))
        .iter()
        .filter(|(path, _)| !path.ends_with(&long.path()) && !path.ends_with("latest"))
        .map(|(_, (_, bytes))| bytes.len())
        .sum();
    assert_eq!(peer.sent(), (long.bytes.len() + documents) as u64);
}

#[tokio::test]
async fn a_registry_without_parts_begins_again() {
    let (bench, long) = (Bench::new(), long());
    let broken = beginning(&bench, &long, 400_000, || Piece::Break);
    let (path, all) = (long.path(), long.bytes.clone());
    let peer = Peer::start(single(std::slice::from_ref(&long)), move |asked| {
        match (asked.path.ends_with(&path), asked.before) {
            (true, 0) => Some(broken(asked)),
            // As if no range had been asked for.
            (true, _) => Some(Answer::of(200, &all)),
            _ => None,
        }
    })
    .await;
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!(bench.blob(&long), long.bytes);
    assert_eq!(ranges(&peer, &long), [None, Some(400_000)]);
}

#[tokio::test]
async fn a_wrong_part_is_not_put_behind_what_is_there() {
    let (bench, long) = (Bench::new(), long());
    let broken = beginning(&bench, &long, 400_000, || Piece::Break);
    let (path, all) = (long.path(), long.bytes.clone());
    let peer = Peer::start(single(std::slice::from_ref(&long)), move |asked| {
        match (asked.path.ends_with(&path), asked.before) {
            (true, 0) => Some(broken(asked)),
            (true, 1) => Some(
                Answer::of(206, &all[5..])
                    .with("content-range", format!("bytes 5-9/{}", all.len())),
            ),
            (true, 2) => Some(Answer::of(416, b"")),
            _ => None,
        }
    })
    .await;
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!(bench.blob(&long), long.bytes);
    assert_eq!(ranges(&peer, &long), [None, Some(400_000), None, None]);
}

#[tokio::test]
async fn a_connection_that_stands_still_is_given_up() {
    let long = long();
    let bench = Bench::with(|config| config.read_timeout = 1.try_into().unwrap());
    let peer = first_answer(&long, beginning(&bench, &long, 400_000, || Piece::Stall)).await;
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!(bench.blob(&long), long.bytes);
    assert_eq!(ranges(&peer, &long), [None, Some(400_000)]);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_asked_for_again() {
    let long = long();
    let bench = Bench::with(|config| config.read_timeout = 1.try_into().unwrap());
    let peer = first_answer(&long, |_| Answer::stall()).await;
    bench.pull(peer.address, Pull::Missing).await.unwrap();
    assert_eq!(bench.blob(&long), long.bytes);
    assert_eq!(ranges(&peer, &long), [None, None]);
}

#[tokio::test]
async fn a_connection_that_always_breaks_is_an_error_and_what_came_is_kept() {
    let (bench, long) = (Bench::new(), long());
    let broken = beginning(&bench, &long, 400_000, || Piece::Break);
    let path = long.path();
    let peer = Peer::start(single(std::slice::from_ref(&long)), move |asked| {
        asked.path.ends_with(&path).then(|| match asked.before {
            0 => broken(asked),
            1..=5 => Answer::pieces(206, Some(300_000), vec![Piece::Break]),
            _ => unreachable!("it gives up"),
        })
    })
    .await;
    let error = bench.pull(peer.address, Pull::Missing).await.unwrap_err();
    assert!(matches!(error, PullError::Broken { .. }), "{error:?}");
    assert!(error.to_string().contains("pull again to go on"), "{error}");
}

#[tokio::test]
async fn a_pull_that_is_dropped_is_gone_on_with() {
    let (bench, long) = (Arc::new(Bench::new()), long());
    let peer = first_answer(&long, beginning(&bench, &long, 400_000, || Piece::Stall)).await;
    let address = peer.address;
    let pull = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.pull(address, Pull::Missing).await.map(drop) }
    });
    bench.progress.at(400_000).await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    bench.pull(address, Pull::Missing).await.unwrap();
    assert_eq!(bench.blob(&long), long.bytes);
    assert_eq!(ranges(&peer, &long), [None, Some(400_000)]);
}
