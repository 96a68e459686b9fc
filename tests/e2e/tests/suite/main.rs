//! The real program, real engines, real guests. Every test has a state directory of its own, and at
//! its end nothing of it may be left on the host.
//!
//! What the tests need is named in the environment by `scripts/test`; what is missing is a failure.
// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod builds;
mod concurrency;
mod confinement;
mod crash;
mod crash_import;
mod exec;
mod files;
mod flatten;
mod forward;
mod images;
mod input;
mod lifecycle;
mod network;
mod network_firewalls;
mod network_limits;
mod scenario;
mod terminal;
mod unpacked;
mod unprivileged;
mod witnesses;
