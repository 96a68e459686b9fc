//! The ledger: the durable record of every object cowslip has and of every handle it holds on the
//! host, written *before* the handle is acquired.
//!
//! ```text
//!   reserve(owner, spec) ──► Reservation<R> ──host acquires──► Held<R> ──settle──► (row: held)
//!        row: reserved            │ dropped                       │ dropped
//!                                 └──────────► row is orphaned ◄──┘   the reaper releases it
//! ```
//!
//! - A [`Reservation`] can only come from [`Ledger::reserve`], and every acquiring function of the
//!   host layer takes one by value: code that would make a handle without a row does not compile.
//! - A row goes only after the host has said that its object is gone (R48).
//! - [`plan::plan`] decides what recovery does; it is a pure function.
//! - Three witnesses: the database, a mirror file for each sandbox ([`mirror`]), and the host's own
//!   inventory. Any one lost, teardown works from the others (R43).
//!
//! This crate never touches the host beyond its own database, mirror files and lock.

mod ballast;
pub mod db;
pub mod fault;
pub mod handle;
pub mod lock;
pub mod mirror;
mod narrow;
pub mod owner;
pub mod plan;
pub mod record;
#[cfg(test)]
mod tests;
pub mod tx;

pub use db::{Ledger, LedgerError, Synchronous};
pub use fault::{Fault, Faults, Step, Verdict};
pub use handle::{HandleRow, HandleState, Held, Reservation, Resource};
pub use owner::Owner;
pub use record::{
    CheckpointRecord, EventRecord, FileStamp, KernelRecord, LayerRecord, MainProcess, MonitorInfo,
    SandboxRecord, TemplateRecord,
};
pub use tx::Tx;
