//! The rules of `cp`: where a copy lands, packing local files, and unpacking what a guest sent.
//!
//! ```text
//!  source \ destination │ absent             │ a file      │ a directory
//!  ─────────────────────┼────────────────────┼─────────────┼──────────────────────────
//!  a file               │ made (not if PATH/)│ overwritten │ copied into it
//!  a directory          │ made, filled       │ refused     │ copied into it as a whole;
//!                       │                    │             │ its contents only with DIR/.
//! ```

pub(crate) mod pack;
mod place;
pub(crate) mod unpack;

pub(crate) use place::{Landing, Place, Remote, Sources, Target, land_in_guest};
