//! A process that is killed while it pulls, wherever it is.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use cowslip_image::BlobDigest;
use cowslip_registry::{Credentials, Progress, Pull};

use crate::bench::{Bench, amd64, puller};
use crate::images::{Layer, double, layer};
use crate::peer::{Answer, Asked, Files, Peer, Piece};

const CACHE: &str = "COWSLIP_TEST_CACHE";
const IMAGE: &str = "COWSLIP_TEST_IMAGE";
/// What the other process says when it is as far as it gets.
const THERE: &str = "as far as it gets";
const BEGINNING: usize = 250_000;

/// The other process: it pulls until it is killed.
#[tokio::test]
async fn a_process_that_pulls() {
    let (Ok(cache), Ok(image)) = (std::env::var(CACHE), std::env::var(IMAGE)) else {
        return;
    };
    struct Tell;
    impl Progress for Tell {
        fn advance(&self, _: &BlobDigest, bytes: u64) {
            if bytes == BEGINNING as u64 {
                println!("\n{THERE}");
            }
        }
    }
    let puller = puller(cache.as_ref(), |_| {});
    let reference = image.parse().unwrap();
    let pulled = puller
        .pull(
            &reference,
            &amd64(),
            Pull::Missing,
            &Credentials::Anonymous,
            &Tell,
        )
        .await;
    panic!("it was to be killed before this: {pulled:?}");
}

struct Other(Child);

impl Other {
    fn start(bench: &Bench, peer: &Peer) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::a_process_that_pulls", "--nocapture"])
            .env(CACHE, bench.cache())
            .env(IMAGE, crate::bench::reference(peer.address).to_string())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Waits until it says that it is there.
    fn there(&mut self) {
        let output = BufReader::new(self.0.stdout.take().unwrap());
        let found = output.lines().any(|line| line.unwrap().contains(THERE));
        assert!(found, "it ended before");
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn image() -> (Vec<Layer>, Files, Vec<BlobDigest>) {
    let layers = vec![layer("one", 600_000), layer("two", 1000)];
    let files = double(&layers, &[]);
    let mut blobs: Vec<_> = layers.iter().map(Layer::digest).collect();
    let index = &files["/v2/a/b/manifests/latest"].1;
    let value: serde_json::Value = serde_json::from_slice(index).unwrap();
    let manifest: BlobDigest = value["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let bytes = &files[&format!("/v2/a/b/manifests/{manifest}")].1;
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    blobs.extend([
        BlobDigest::of(index),
        manifest,
        value["config"]["digest"].as_str().unwrap().parse().unwrap(),
    ]);
    (layers, files, blobs)
}

// covers R62
#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_layer() {
    let (layers, files, blobs) = image();
    let (path, bytes) = (layers[0].path(), layers[0].bytes.clone());
    let peer = Peer::start(files, move |asked| {
        let pieces = || vec![Piece::Bytes(bytes[..BEGINNING].to_vec()), Piece::Stall];
        (asked.path.ends_with(&path) && asked.before == 0)
            .then(|| Answer::pieces(200, Some(bytes.len()), pieces()))
    })
    .await;
    let bench = Bench::new();
    let mut other = Other::start(&bench, &peer);
    other.there();
    // The other layer comes meanwhile, or not.
    other.kill();
    assert_eq!(
        std::fs::metadata(bench.partial(&layers[0])).unwrap().len(),
        BEGINNING as u64
    );
    let pulled = bench.pull(peer.address, Pull::Missing).await.unwrap();
    bench.assert_readable(&pulled, 2);
    bench.assert_only(&blobs);
    let resumed = format!("bytes={BEGINNING}-");
    let asked = peer.asked();
    let of_layer: Vec<_> = asked
        .iter()
        .filter(|asked| asked.path.ends_with(&layers[0].path()))
        .collect();
    assert_eq!(of_layer.len(), 2);
    assert_eq!(of_layer[1].range.as_deref(), Some(resumed.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_request() {
    let (layers, files, blobs) = image();
    // The tag, index, manifest, config, and the layers, of which two are on their way at once.
    for number in 1..=5 {
        let held: Arc<Mutex<Option<Asked>>> = Arc::default();
        let (count, hold) = (Mutex::new(0), Arc::clone(&held));
        let peer = Peer::start(files.clone(), move |asked| {
            let mut count = count.lock().unwrap();
            *count += 1;
            (*count == number).then(|| {
                *hold.lock().unwrap() = Some(asked.clone());
                Answer::stall()
            })
        })
        .await;
        let bench = Bench::new();
        let other = Other::start(&bench, &peer);
        peer.until_count(number).await;
        other.kill();
        bench.pull(peer.address, Pull::Missing).await.unwrap();
        bench.assert_only(&blobs);
        assert_eq!(bench.blob(&layers[0]), layers[0].bytes, "{held:?}");
    }
}

// What is left of a download may be anything after a power cut.
#[tokio::test]
async fn a_beginning_that_is_not_one_is_thrown_away() {
    let (layers, files, blobs) = image();
    let size = layers[0].bytes.len();
    for (name, left) in [
        ("zeros", vec![0; 1000]),
        ("too much", vec![1; size + 1]),
        ("whole but wrong", vec![2; size]),
    ] {
        let peer = Peer::plain(files.clone()).await;
        let bench = Bench::new();
        std::fs::write(bench.partial(&layers[0]), left).unwrap();
        bench.pull(peer.address, Pull::Missing).await.unwrap();
        bench.assert_only(&blobs);
        assert_eq!(bench.blob(&layers[0]), layers[0].bytes, "{name}");
    }
}
