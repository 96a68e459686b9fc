//! the HTTP API over the engine.
