//! What is kept, and what goes.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use cowslip_image::BlobDigest;

use super::{Cache, Lease, Record};
use crate::download::store;

struct Bench {
    _directory: tempfile::TempDir,
    cache: Cache,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        Self {
            _directory: directory,
            cache,
        }
    }

    /// A blob of 1,000 bytes that was used so many hours ago.
    async fn blob(&self, fill: u8, hours: u64) -> BlobDigest {
        let bytes = vec![fill; 1000];
        let digest = BlobDigest::of(&bytes);
        store(&self.cache, &digest, bytes).await.unwrap();
        age(&self.cache.blob_path(&digest), hours);
        digest
    }

    fn has(&self, digest: &BlobDigest) -> bool {
        self.cache.blob_path(digest).exists()
    }
}

fn age(path: &std::path::Path, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    File::open(path).unwrap().set_modified(then).unwrap();
}

#[tokio::test]
async fn what_was_not_used_for_longest_goes_first() {
    let bench = Bench::new();
    let blobs = [
        bench.blob(1, 3).await,
        bench.blob(2, 1).await,
        bench.blob(3, 2).await,
    ];
    let nothing = bench.cache.gc(3000).unwrap();
    assert_eq!((nothing.files, nothing.left), (0, 3000));
    // Use counts, not age.
    drop(bench.cache.hold(&blobs[0]).unwrap().unwrap());
    let collected = bench.cache.gc(2999).unwrap();
    assert_eq!(
        (collected.files, collected.bytes, collected.left),
        (1, 1000, 2000)
    );
    assert_eq!(
        blobs.each_ref().map(|blob| bench.has(blob)),
        [true, true, false]
    );
    assert_eq!(bench.cache.gc(1000).unwrap().left, 1000);
    assert_eq!(
        blobs.each_ref().map(|blob| bench.has(blob)),
        [true, false, false]
    );
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let bench = Bench::new();
    let (used, other) = (bench.blob(1, 9).await, bench.blob(2, 1).await);
    let lease = Lease::new(bench.cache.clone());
    assert!(lease.hold(&used).unwrap());
    age(&bench.cache.blob_path(&used), 9);
    // As another process would see it.
    let elsewhere = Cache::open(bench._directory.path()).unwrap();
    let collected = elsewhere.gc(0).unwrap();
    assert_eq!((collected.files, collected.left), (1, 1000));
    assert_eq!((bench.has(&used), bench.has(&other)), (true, false));
    let clone = lease.clone();
    drop(lease);
    assert_eq!(bench.cache.gc(0).unwrap().left, 1000);
    drop(clone);
    assert_eq!(bench.cache.gc(0).unwrap().left, 0);
    assert!(!bench.has(&used));
}

#[tokio::test]
async fn downloads_that_nobody_goes_on_with_go() {
    let bench = Bench::new();
    let partial = |name: &str| bench.cache.partial_directory().join(name);
    for (name, hours) in [
        ("sha256-new", 23),
        ("sha256-old", 25),
        ("sha256-locked", 25),
        ("record-1-1", 25),
    ] {
        fs::write(partial(name), b"12345").unwrap();
        age(&partial(name), hours);
    }
    let locked = File::open(partial("sha256-locked")).unwrap();
    locked.try_lock().unwrap();
    let collected = bench.cache.gc(1 << 20).unwrap();
    assert_eq!((collected.files, collected.bytes), (2, 10));
    let left = ["sha256-new", "sha256-old", "sha256-locked", "record-1-1"]
        .map(|name| partial(name).exists());
    assert_eq!(left, [true, false, true, false]);
}

#[tokio::test]
async fn records_go_with_their_image() {
    let bench = Bench::new();
    let (kept, gone) = (bench.blob(1, 1).await, bench.blob(2, 2).await);
    let platform = "linux/amd64".parse().unwrap();
    let note = |name: &str, digest: &BlobDigest| {
        let record = Record {
            reference: name.parse().unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            media_type: "x".into(),
            digest: digest.clone(),
            size: 1000,
        };
        bench.cache.note(&record).unwrap();
        record
    };
    let (kept, gone) = (note("kept", &kept), note("gone", &gone));
    let find = |record: &Record| bench.cache.record(&record.reference, &platform).unwrap();
    assert_eq!(
        (find(&kept).as_ref(), find(&gone).as_ref()),
        (Some(&kept), Some(&gone))
    );
    let arm = "linux/arm64".parse().unwrap();
    assert_eq!(bench.cache.record(&kept.reference, &arm).unwrap(), None);
    bench.cache.gc(1000).unwrap();
    assert_eq!(
        (find(&kept).as_ref(), find(&gone).as_ref()),
        (Some(&kept), None)
    );
    assert_eq!(
        fs::read_dir(bench.cache.references_directory())
            .unwrap()
            .count(),
        1
    );
    // A record that a crash cut in half is none.
    let path = bench.cache.record_path(&kept.reference, &platform);
    fs::write(&path, b"{\"refer").unwrap();
    assert_eq!(find(&kept), None);
}

#[tokio::test]
async fn nobody_else_may_look_into_it() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let digest = bench.blob(1, 0).await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.cache.blobs()), 0o700);
    assert_eq!(mode(&bench.cache.blob_path(&digest)), 0o600);
}
