//! The API over a real engine on a simulated host, through a real socket.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod document;
mod ending;
mod objects;
mod refusals;
mod sessions;
mod support;
