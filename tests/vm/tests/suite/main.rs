//! Loop devices, device-mapper and volumes on the real kernel. Each test has a state directory of its
//! own, and at its end no device of it may be left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]
#![allow(clippy::cast_possible_truncation)]

mod bench;
mod cgroups;
mod commands;
mod devices;
mod discards;
mod faults;
mod firecracker;
mod firecracker_failures;
mod firecracker_memory;
mod first_process;
mod guests;
mod machine;
mod matrix;
mod merging;
mod power;
mod prepare;
mod soak;
mod volumes;
