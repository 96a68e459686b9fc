//! The real command against an engine that says what the test wants, and against a real one.

mod copies;
mod engine;
mod failures;
mod fake;
mod help;
mod objects;
mod sessions;
mod terminal;
