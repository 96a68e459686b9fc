//! The failure harness: every verb, every step, each way of going wrong, on the simulated host.
//!
//! A case is one verb with one step made to go wrong: an error, a death of the engine before the step,
//! or a death after it (which, at an acquisition, is the death before the record). Afterwards a new
//! engine recovers where the old one died, and in every case:
//!
//! - nothing forbidden was done to the world (two writers of a file, a file gone under a machine, …);
//! - there is nothing left to recover;
//! - every network has addresses of its own, and is under its sandbox's rules (`networks.rs`);
//! - sandboxes that existed before are there, whole, and can still be used;
//! - once they are removed the host is as it was before the first of them.
//!
//! covers R1 R2 R3 R4 R8 R13 R18 R22 R25 R26 R30 R31 R32 R33 R34 R37 R38 R46 R47 R48 R64 R65

// Helpers are test code too, which clippy knows only of functions marked as tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod armed;
mod bench;
mod matrix;
mod networks;
mod ports;
mod repeat;
mod sequences;
mod spares;
mod witnesses;
