//! A cache, and what pulls into it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cowslip_image::{BlobDigest, Job, Limits, NoProgress, Owners, Platform, Sizing, check_image};
use cowslip_registry::{
    Cache, Config, Credentials, Progress, Pull, PullError, Pulled, Puller, Reference,
};
use tokio::sync::watch;

use crate::images::Layer;

pub(crate) struct Bench {
    directory: tempfile::TempDir,
    pub(crate) puller: Puller,
    pub(crate) progress: Watch,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let puller = puller(&directory.path().join("cache"), change);
        Self {
            directory,
            puller,
            progress: Watch::default(),
        }
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    pub(crate) fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) async fn pull(&self, address: SocketAddr, when: Pull) -> Result<Pulled, PullError> {
        self.pull_as(address, when, &Credentials::Anonymous).await
    }

    pub(crate) async fn pull_as(
        &self,
        address: SocketAddr,
        when: Pull,
        credentials: &Credentials,
    ) -> Result<Pulled, PullError> {
        let reference = reference(address);
        self.puller
            .pull(&reference, &amd64(), when, credentials, &self.progress)
            .await
    }

    /// The cache has exactly these blobs and nothing half done.
    pub(crate) fn assert_only(&self, digests: &[BlobDigest]) {
        assert_eq!(names(&self.cache().join("partial")), Vec::<String>::new());
        let mut expected: Vec<_> = digests
            .iter()
            .map(|digest| digest.hex().to_owned())
            .collect();
        expected.sort();
        assert_eq!(names(&self.cache().join("blobs/sha256")), expected);
    }

    pub(crate) fn blob(&self, layer: &Layer) -> Vec<u8> {
        std::fs::read(self.cache().join("blobs/sha256").join(layer.digest().hex())).unwrap()
    }

    pub(crate) fn partial(&self, layer: &Layer) -> PathBuf {
        self.cache()
            .join("partial")
            .join(format!("sha256-{}", layer.digest().hex()))
    }

    /// The importer reads it as the image that it is.
    pub(crate) fn assert_readable(&self, pulled: &Pulled, entries: u64) {
        let (limits, sizing, cancel) = (Limits::default(), Sizing::default(), Default::default());
        let job = Job {
            work_dir: self.scratch(),
            output: &self.scratch().join("image"),
            label: "cowslip",
            limits,
            sizing,
            owners: Owners::Keep,
            progress: &NoProgress,
            cancel: &cancel,
        };
        assert_eq!(check_image(&pulled.image, &job).unwrap(), entries);
    }
}

pub(crate) fn puller(cache: &Path, change: impl FnOnce(&mut Config)) -> Puller {
    let mut config = Config::default();
    change(&mut config);
    Puller::new(Cache::open(cache).unwrap(), config).unwrap()
}

pub(crate) fn reference(address: SocketAddr) -> Reference {
    format!("docker://{address}/a/b").parse().unwrap()
}

pub(crate) fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An error with all that caused it.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// What was told of a pull.
#[derive(Default)]
pub(crate) struct Watch {
    /// The farthest position of any layer.
    pub(crate) farthest: watch::Sender<u64>,
    pub(crate) done: Mutex<Vec<BlobDigest>>,
    pub(crate) total: Mutex<u64>,
}

impl Progress for Watch {
    fn layer(&self, _: &BlobDigest, total: u64) {
        *self.total.lock().unwrap() += total;
    }

    fn advance(&self, _: &BlobDigest, bytes: u64) {
        self.farthest
            .send_modify(|farthest| *farthest = bytes.max(*farthest));
    }

    fn done(&self, digest: &BlobDigest) {
        self.done.lock().unwrap().push(digest.clone());
    }
}

impl Watch {
    /// Completes when a layer is there that far.
    pub(crate) fn at(&self, bytes: usize) -> impl Future<Output = ()> + Send + 'static {
        let mut watch = self.farthest.subscribe();
        async move {
            watch
                .wait_for(|farthest| *farthest >= bytes as u64)
                .await
                .unwrap();
        }
    }
}
