//! The real command against an engine that says what the test wants, and against a real one.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod copies;
mod engine;
mod failures;
mod fake;
mod forward;
mod help;
mod imports;
mod init;
mod objects;
mod prepare;
mod sessions;
mod terminal;
