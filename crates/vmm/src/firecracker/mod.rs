//! Firecracker as the monitor.
//!
//! ```text
//!   api       its control channel: HTTP over a unix socket
//! ```

pub mod api;
