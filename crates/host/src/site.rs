//! Where handles are acquired: the ledger, the host and the layout, always used together.

use std::sync::Arc;

use cowslip_ledger::Ledger;

use crate::Host;
use crate::layout::Layout;

/// The three things that every acquiring function needs. Cheap to clone.
#[derive(Clone)]
pub struct Site {
    /// Where intents and handles are recorded.
    pub ledger: Ledger,
    /// What acquires and releases them.
    pub host: Arc<dyn Host>,
    /// Where everything lies.
    pub layout: Layout,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site")
            .field("ledger", &self.ledger)
            .field("layout", &self.layout)
            .finish()
    }
}
