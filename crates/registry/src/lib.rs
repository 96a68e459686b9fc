//! Images from registries.
//!
//! ```text
//!  Puller::pull ─┬─ Cache: whole already? ────────────────────────────────────┐
//!                ├─ Source: mirrors, then the registry                        ├─► Pulled: Image, Lease
//!                │    └─ Remote: HTTP, tokens, redirects; Backoff             │
//!                └─ download: documents one by one, layers at once ─ Partial ─┘
//! ```
//!
//! Whatever a registry sends is bounded and held to its digest before it is a blob of the [`Cache`]; what it means is
//! for the image crate to say, which reads the cache as it reads any other blobs.
//!
//! This crate owns the cache's directory. It must never give credentials to anybody but the registry that they are for
//! and the token server that this registry names, keep a blob that was not checked, or use text from outside as a path.

mod cache;
mod config;
pub mod credentials;
mod download;
mod error;
mod host;
mod progress;
mod pull;
mod reference;
mod remote;
mod source;

pub use cache::{Cache, CacheError, Collected, Lease};
pub use config::Config;
pub use credentials::Credentials;
pub use error::PullError;
pub use host::{Host, ParseHostError};
pub use progress::{NoProgress, Progress};
pub use pull::{Have, Pull, Pulled, Puller};
pub use reference::{ParseReferenceError, Reference};
pub use remote::ClientError;
