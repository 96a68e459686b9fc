//! Pulls: from a registry of the test's own that can misbehave, and from Debian's.

// Helpers of tests may fail as tests do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout
)]

mod auth;
mod bench;
mod broken;
mod debian;
mod full;
mod helpers;
mod images;
mod killed;
mod peer;
mod pulls;
mod together;
mod wrong;
