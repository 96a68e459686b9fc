//! The guest as a machine: who it is, its disk, its meters and its end.

pub(crate) mod disk;
pub(crate) mod etc;
pub(crate) mod identity;
pub(crate) mod metrics;
pub(crate) mod shutdown;
