//! Ports of the host that lead to guests: each leads to one.

use std::sync::Arc;

use cowslip_ledger::{SandboxRecord, Tx};
use cowslip_model::network::PublishedPort;
use cowslip_model::{NetworkSpec, SandboxId, SandboxState};

use crate::error::EngineError;
use crate::{Engine, blocking};

/// Whether a sandbox keeps its ports from others: from when it is being made or started, and while it is paused.
pub(super) fn holds(sandbox: &SandboxRecord) -> bool {
    let kept = [
        SandboxState::Creating,
        SandboxState::Running,
        SandboxState::Paused,
    ];
    sandbox.transition.is_some() || kept.contains(&sandbox.state)
}

/// Refuses ports that another sandbox has. In the transaction that makes them this one's.
pub(crate) fn refuse_taken(
    tx: &Tx<'_>,
    id: SandboxId,
    network: &NetworkSpec,
) -> Result<(), EngineError> {
    if network.publish.is_empty() {
        return Ok(());
    }
    for other in tx
        .publishing()?
        .iter()
        .filter(|other| other.id != id && holds(other))
    {
        let clashes = |port: &&PublishedPort| {
            other
                .spec
                .network
                .publish
                .iter()
                .any(|theirs| theirs.clashes(port))
        };
        if let Some(port) = network.publish.iter().find(clashes) {
            return Err(EngineError::PortTaken {
                port: port.clone(),
                by: format!("sandbox \"{}\"", other.name),
            });
        }
    }
    Ok(())
}

impl Engine {
    /// Refuses ports that another program of this host listens on: what it is sent would be taken from it.
    pub(crate) async fn refuse_held_ports(
        &self,
        ports: impl Iterator<Item = &PublishedPort>,
    ) -> Result<(), EngineError> {
        for port in ports {
            let (host, asked) = (Arc::clone(&self.site.host), port.clone());
            if let Some(by) = blocking(move || host.port_holder(&asked)).await?? {
                let port = port.clone();
                return Err(EngineError::PortTaken { port, by });
            }
        }
        Ok(())
    }
}
