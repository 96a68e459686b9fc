//! Bounds on what a sandbox may take of what it shares with others.

use serde::{Deserialize, Serialize};

use crate::size::ByteSize;

/// How fast a sandbox may use its disk; none: as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DiskLimits {
    /// Bytes read and written in a second.
    pub bandwidth: Option<ByteSize>,
    /// Requests in a second.
    pub operations: Option<u64>,
}

impl DiskLimits {
    /// Whether there is none.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.bandwidth.is_none() && self.operations.is_none()
    }
}
