//! The HTTP API over the engine: routes, streams, sessions, and the OpenAPI document.
//!
//! ```text
//!  unix socket ─► connection (peer's uid) ─► router ─► route ─► engine verb
//!                     │                                  │
//!                     └─ counted: idle ends the process  └─ errors are always an `ErrorBody`
//! ```
//!
//! This crate turns requests into calls of the engine and back. It decides nothing about sandboxes,
//! holds nothing on the host, and never prints. Whatever a client sends is bounded here: JSON by its
//! size, streams by back-pressure, connections by their number.

mod activity;
mod body;
mod error;
mod extract;
mod listen;
mod peer;
mod router;
mod routes;
mod session;
mod shutdown;
mod version;

pub use listen::{Options, serve};
pub use router::openapi;
pub use shutdown::Shutdown;
pub use version::VERSION_HEADER;
