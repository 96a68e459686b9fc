//! Whole imports, read back with e2fsprogs' own programs.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod base;
mod damage;
mod directory;
mod export;
mod export_image;
mod guests;
mod hostile;
mod hostile_ext4;
mod image_builder;
mod images;
mod layout;
mod reference;
mod support;
mod tar;
mod trees;
