//! an in-memory host and machine monitor for tests.
