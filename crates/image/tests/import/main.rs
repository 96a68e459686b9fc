//! Whole imports, read back with e2fsprogs' own programs.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod directory;
mod hostile;
mod image_builder;
mod images;
mod layout;
mod reference;
mod support;
mod tar;
