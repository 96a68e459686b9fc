//! The words of cowslip: ids, names, sizes, states and the public types of its API.
//!
//! Nothing here does I/O. What comes from outside (a command line, a request, a file) is turned
//! into one of these types once, at the edge; a value of such a type is valid by construction, so
//! no inner layer checks it again (R63).

pub mod api;
pub mod cpu;
pub mod disk;
pub mod id;
pub mod image;
pub mod limits;
pub mod monitor;
pub mod name;
pub mod network;
pub mod size;
pub mod spec;
pub mod state;
pub mod time;

pub use cpu::{CpuTemplate, CpuTemplateError, HostCpu, NamedCpuTemplate};
pub use disk::{DiskChain, DiskFormat, DiskLayer, Durability};
pub use id::{
    CheckpointId, HandleId, InstanceId, KernelId, LayerId, ProcessId, SandboxId, TemplateId,
};
pub use image::ImageConfig;
pub use limits::DiskLimits;
pub use monitor::{Isolation, MonitorKind, UnknownWord};
pub use name::{Name, NameError};
pub use network::{NetworkLimits, NetworkMode, NetworkRule, NetworkSpec, PublishedPort, Transport};
pub use size::{ByteSize, SizeError};
pub use spec::{OnExpiry, Resources, SandboxSpec};
pub use state::{SandboxState, Transition};
pub use time::{Lifetime, Timestamp};
