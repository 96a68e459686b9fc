//! Tests on a real kernel with root's rights; see `tests/suite`. `cargo xtask vm test` runs them.
