//! The agent protocol and its link over a byte stream.
//!
//! Three layers, each ignorant of the one above:
//!
//! ```text
//!   client::AgentClient  ◄── gRPC, one service ──►  cowslip-agent
//!   HTTP/2
//!   link (virtio-serial)   or   nothing (vsock, unix sockets)
//! ```
//!
//! The guest is not trusted: whatever it sends is bounded here, and every wait for it has a limit
//! or ends with the stream. This crate opens no file, socket or device itself.

#[cfg(feature = "client")]
pub mod client;
pub mod limits;
pub mod link;

/// Types generated from `proto/agent.proto`.
#[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all)]
pub mod pb {
    tonic::include_proto!("cowslip.agent.v1");
}

#[cfg(feature = "client")]
pub use client::{AgentClient, CallError};
