//! The resolver of a sandbox on loopback sockets, with name servers that a test writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
mod hostile;
mod rebinding;
mod sandbox;
mod servers;
mod site;
mod times;
