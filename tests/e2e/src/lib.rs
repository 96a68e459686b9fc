//! What the end-to-end tests stand on: an [`Instance`] is a state directory of its own with the real
//! program and, once a command needs it, a real engine and real guests.
//!
//! ```text
//!  Instance::new ─► commands (an engine starts by itself) ─► drop: remove everything, then look for
//!                                                            survivors; any fails the test
//! ```
//!
//! Nothing here waits by the clock: what is waited for is an end of a process, output, an event or a
//! change in a directory. [`PATIENCE`] only bounds the wait of a test that fails.
// This library is only linked into tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A test that fails says what the engine said.
#![allow(clippy::print_stderr)]

mod archive;
mod assets;
mod call;
mod changes;
mod image;
mod instance;
mod lab;
mod mounted;
mod names;
mod survivors;
mod terminal;
mod vitals;

use std::time::Duration;

pub use archive::{Tar, box_tar, many_files_tar, one_program_tar, read_tar};
pub use assets::{Kernel, rootfs_tar};
pub use call::{Call, Done, Running};
pub use changes::Changes;
pub use cowslip_test_parts::{Listing, Registry, list, missing, run, special_files};
pub use image::ContainerImage;
pub use instance::{Backend, Instance, Setup};
pub use lab::{End, HOST, HOST_PRIVATE, Lab, METADATA, OTHER, PRIVATE, SITE};
pub use mounted::Mounted;
pub use names::Names;
pub use terminal::Terminal;

/// Long enough for a loaded machine: only a failure ever waits so long.
pub const PATIENCE: Duration = Duration::from_secs(180);
