//! The host: the only crate that acquires handles, and the only one with `unsafe`.
//!
//! One file a kind of kernel object, and in each the same three functions: *acquire* (takes the
//! ledger's [`Reservation`] by value), *probe* (is what a row names there, and is it ours?) and
//! *release* (make it gone; being gone already counts). [`Host`] is their sum, so that everything
//! above runs on [`LinuxHost`] or on a simulated one.
//!
//! Releases are idempotent and never act on an object whose identity does not match its row.

pub mod adopt;
pub mod bounded_log;
pub mod cgroup;
pub mod clone;
pub mod confine;
pub mod descriptors;
pub mod directory;
pub mod dm;
pub mod error;
pub mod file;
pub mod follow;
pub mod head;
mod holders;
mod host;
pub mod kvm;
pub mod layout;
pub mod linux;
pub mod loops;
pub mod mount;
pub mod netns;
pub mod prepare;
pub mod process;
pub mod publish;
pub mod site;
pub mod socket;
mod strays;
#[cfg(test)]
mod tests;
pub mod usage;

pub use bounded_log::BoundedLog;
pub use cgroup::{Cgroup, CgroupSpec};
pub use directory::{Directory, DirectorySpec};
pub use dm::{Device, DeviceIdentity, DeviceNumber, DeviceSpec, DmError, Segment, Target};
pub use error::HostError;
pub use file::{Content, File, FileSpec};
pub use follow::FileWatch;
pub use head::Head;
pub use host::{Files, Host, Networks};
pub use layout::Layout;
pub use linux::LinuxHost;
pub use loops::{Loop, LoopHold, LoopIdentity, LoopSpec};
pub use mount::{Mount, MountSpec};
pub use netns::{
    Count, DeniedLog, DeniedPacket, DroppingChain, Element, Firewall, Netns, NetnsSpec,
    TableSocket, TapSpec,
};
pub use process::{Launch, Process, ProcessIdentity, ProcessSpec};
pub use site::Site;
pub use socket::{Socket, SocketSpec};
