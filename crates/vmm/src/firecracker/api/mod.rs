//! The client of Firecracker's API: typed requests over its unix socket, and only those that are used.
//!
//! ```text
//!   wait ──(socket appears)──► Api ──connection──► one request, one answer ──► closed
//! ```
//!
//! Every request has a connection of its own: a caller that is cancelled leaves no half answer for the
//! next one, and connecting costs a fraction of what any request does. Firecracker carries out one
//! request at a time, also those whose caller is gone. The client knows nothing of processes.

mod answers;
mod error;
mod exchange;
#[cfg(test)]
pub(super) mod peer;
mod requests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cowslip_host::FileWatch;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use answers::{Configuration, ConfiguredDrive, ConfiguredMachine, Instance, InstanceState};
pub use error::ApiError;
pub use requests::{
    Balloon, BootSource, CacheType, Drive, Entropy, MachineConfiguration, NetworkDevice,
    RateLimiter, SnapshotCreate, SnapshotKind, SnapshotLoad, TokenBucket, Vsock,
};

use answers::Version;
use exchange::{Answer, Request};
use requests::{Action, StateChange};

/// How long Firecracker may take to answer, in seconds. It answers at once but for a start, which
/// reads the kernel from a disk that may be slow.
pub const ANSWER_BOUND_SECONDS: u64 = 60;

/// The API of one Firecracker. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// [`ANSWER_BOUND_SECONDS`].
    Bounded,
    /// As long as the connection stands: a snapshot takes what memory and disk make of it (R40).
    Endless,
}

impl Api {
    /// The API that listens at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Waits until a Firecracker that is starting listens at `socket`. There is no bound: the caller
    /// waits for the end of the process at the same time.
    ///
    /// The kernel tells that the socket's file was made, not that it is listened on, which comes an
    /// instant later; Firecracker's log, which must lie in the same directory and be of level `Info`,
    /// is written after that. So whatever happens in the directory is a reason to look again.
    ///
    /// # Errors
    /// When the directory cannot be watched, or what stands there cannot be connected to.
    pub async fn wait(socket: PathBuf) -> Result<Self, ApiError> {
        const OPERATION: &str = "wait for the API socket";
        let directory = socket.parent().unwrap_or(Path::new("/"));
        let mut watch = FileWatch::directory(directory)?;
        let closed = |error: std::io::Error| {
            ApiError::closed(OPERATION, format!("\"{}\": {error}", socket.display()))
        };
        loop {
            match crate::firecracker::socket::connect(&socket).await {
                Ok(_) => return Ok(Self { socket }),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Err(closed(error)),
            }
            watch.changed().await.map_err(closed)?;
        }
    }

    /// What the machine boots from.
    ///
    /// # Errors
    /// As [`ApiError`] says; so for every request.
    pub async fn boot_source(&self, source: &BootSource) -> Result<(), ApiError> {
        self.put("/boot-source", source).await
    }

    /// Adds a disk.
    ///
    /// # Errors
    /// As for every request.
    pub async fn drive(&self, drive: &Drive) -> Result<(), ApiError> {
        let path = format!("/drives/{}", drive.drive_id);
        self.put(&path, drive).await
    }

    /// Adds an interface.
    ///
    /// # Errors
    /// As for every request.
    pub async fn network(&self, device: &NetworkDevice) -> Result<(), ApiError> {
        let path = format!("/network-interfaces/{}", device.iface_id);
        self.put(&path, device).await
    }

    /// Sets vCPUs and memory.
    ///
    /// # Errors
    /// As for every request.
    pub async fn machine(&self, machine: &MachineConfiguration) -> Result<(), ApiError> {
        self.put("/machine-config", machine).await
    }

    /// Sets what of the processor the guest is shown, by a custom template.
    ///
    /// # Errors
    /// As for every request.
    pub async fn cpu(
        &self,
        template: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), ApiError> {
        self.put("/cpu-config", template).await
    }

    /// Adds the vsock device.
    ///
    /// # Errors
    /// As for every request.
    pub async fn vsock(&self, vsock: &Vsock) -> Result<(), ApiError> {
        self.put("/vsock", vsock).await
    }

    /// Adds the device that gives the guest entropy.
    ///
    /// # Errors
    /// As for every request.
    pub async fn entropy(&self, entropy: &Entropy) -> Result<(), ApiError> {
        self.put("/entropy", entropy).await
    }

    /// Adds the memory balloon.
    ///
    /// # Errors
    /// As for every request.
    pub async fn balloon(&self, balloon: &Balloon) -> Result<(), ApiError> {
        self.put("/balloon", balloon).await
    }

    /// Starts the machine; its vCPUs run afterwards.
    ///
    /// # Errors
    /// As for every request.
    pub async fn start(&self) -> Result<(), ApiError> {
        self.put("/actions", &Action::InstanceStart).await
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// As for every request.
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.patch("/vm", &StateChange::Paused).await
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// As for every request.
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.patch("/vm", &StateChange::Resumed).await
    }

    /// Writes memory and device state of a paused machine, however long it takes.
    ///
    /// # Errors
    /// As for every request.
    pub async fn create_snapshot(&self, snapshot: &SnapshotCreate) -> Result<(), ApiError> {
        let request = Request::with_body("PUT", "/snapshot/create", snapshot)?;
        self.done(request, Patience::Endless).await
    }

    /// Makes the machine of a Firecracker that has none yet from a snapshot, however long it takes.
    ///
    /// # Errors
    /// As for every request.
    pub async fn load_snapshot(&self, snapshot: &SnapshotLoad) -> Result<(), ApiError> {
        let request = Request::with_body("PUT", "/snapshot/load", snapshot)?;
        self.done(request, Patience::Endless).await
    }

    /// What the machine is doing.
    ///
    /// # Errors
    /// As for every request.
    pub async fn instance(&self) -> Result<Instance, ApiError> {
        self.get("/").await
    }

    /// Firecracker's version.
    ///
    /// # Errors
    /// As for every request.
    pub async fn version(&self) -> Result<String, ApiError> {
        let version: Version = self.get("/version").await?;
        Ok(version.firecracker_version)
    }

    /// What the machine was configured with.
    ///
    /// # Errors
    /// As for every request.
    pub async fn configuration(&self) -> Result<Configuration, ApiError> {
        self.get("/vm/config").await
    }

    async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        let request = Request::with_body("PUT", path, body)?;
        self.done(request, Patience::Bounded).await
    }

    async fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        let request = Request::with_body("PATCH", path, body)?;
        self.done(request, Patience::Bounded).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let request = Request::plain("GET", path);
        let answer = self.ask(request, Patience::Bounded).await?;
        answer.read()
    }

    async fn done(&self, request: Request, patience: Patience) -> Result<(), ApiError> {
        self.ask(request, patience).await.map(drop)
    }

    async fn ask(&self, request: Request, patience: Patience) -> Result<Answer, ApiError> {
        let label = request.label();
        let exchange = exchange::run(&self.socket, request);
        let answer = match patience {
            Patience::Endless => exchange.await,
            Patience::Bounded => {
                let bound = Duration::from_secs(ANSWER_BOUND_SECONDS);
                tokio::time::timeout(bound, exchange)
                    .await
                    .unwrap_or(Err(ApiError::TimedOut { request: label }))
            }
        };
        answer?.accepted()
    }
}
