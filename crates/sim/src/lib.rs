//! A host, a machine monitor and guests in memory, for the failure harness: every verb, every step,
//! each way of going wrong, in milliseconds.
//!
//! ```text
//!   engine ─► SimHost ──┐            ┌── directories, files, sockets, mounts
//!          ─► SimVmm  ──┼─ Injector ─► World: processes with guests
//!          ─► SimGuests ┤   (steps)  └── violations: what must never have been done
//!          ─► SimImages ┘
//! ```
//!
//! The [`World`] outlives the engine. A "crash" is an injector that refuses every further step; the
//! next engine gets the same world through a new injector. The ledger is the real one.

#[cfg(test)]
mod engine_tests;
pub mod faults;
pub mod guests;
pub mod host;
pub mod images;
mod machine;
#[cfg(test)]
mod network_tests;
pub mod rig;
#[cfg(test)]
mod tests;
pub mod vmm;
pub mod world;

pub use faults::{Recorder, Script};
pub use guests::SimGuests;
pub use host::SimHost;
pub use images::SimImages;
pub use rig::Rig;
pub use vmm::SimVmm;
pub use world::{GuestView, Snapshot, World};
