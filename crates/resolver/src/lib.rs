//! The resolver of guests: answers their questions for names, by the network rules of their sandbox.
//!
//! ```text
//!  guest ─ question ─► serve ─► Question ─► Policy: may it be asked? ── no ─► no such name
//!                                              │ yes
//!                                     Cache ◄──┴──► Upstream: the host's own name servers
//!                                              │
//!                          Policy: addresses that are closed are taken out
//!                                              │
//!                          Gate: what is left is opened ── fails ─► SERVFAIL
//!                                              │
//!  guest ◄─ answer ────────────────────────────┘
//! ```
//!
//! A guest is hostile, and so are the name servers of the names that it asks for. What either can make grow is bounded:
//! questions under way, connections, what is kept. An address is never in an answer before it is open, and never
//! because of a name if it is of a network that only its own rule opens.
//!
//! This crate owns no socket's address and no packet filter: sockets are given to it, bound in the sandbox's namespace,
//! and a [`Gate`] opens addresses. It must never answer anybody but who asked, and never pass on what was not asked for.

mod answer;
mod cache;
mod counters;
mod gate;
mod policy;
mod question;
mod resolver;
mod serve;
#[cfg(test)]
mod tests;
mod upstream;

pub use gate::{Gate, GateError, Opening};
pub use policy::Policy;
pub use resolver::Resolver;
pub use upstream::{Servers, Upstream};
