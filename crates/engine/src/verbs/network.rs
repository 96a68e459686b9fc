//! `network`: what a sandbox may reach, and who may reach it, changed while it runs.

use std::sync::Arc;

use cowslip_ledger::{SandboxRecord, Synchronous};
use cowslip_model::api::{self, NetworkRules};
use cowslip_model::{NetworkMode, NetworkSpec, SandboxId, SandboxState};

use crate::error::EngineError;
use crate::network::{Sets, refuse_taken};
use crate::{Engine, blocking, to_the_end};

impl Engine {
    /// Puts a sandbox under these rules, in place of all that it was under.
    ///
    /// # Errors
    /// When they cannot be, or a port is taken: it is under the old ones then.
    pub async fn set_network(
        self: &Arc<Self>,
        reference: &str,
        rules: NetworkRules,
    ) -> Result<api::Sandbox, EngineError> {
        let id = self.find_sandbox(reference)?.id;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let _busy = engine.lock(id).await;
            let record = engine.set_network_locked(id, rules).await?;
            engine.view_sandbox(&record)
        })
        .await
    }

    async fn set_network_locked(
        self: &Arc<Self>,
        id: SandboxId,
        rules: NetworkRules,
    ) -> Result<SandboxRecord, EngineError> {
        let before = self.current(id)?;
        let old = &before.spec.network;
        let new = rules.over(old);
        self.check_network(&new, before.spec.vmm)?;
        let running = before.state == SandboxState::Running;
        if running && new.mode == NetworkMode::User && new.publish != old.publish {
            return Err(EngineError::Unsupported(
                "the ports of a user-mode network stay as they are while it is used: stop the sandbox first".to_owned(),
            ));
        }
        let changes = running && new.mode == NetworkMode::Nat;
        if changes {
            let added = new
                .publish
                .iter()
                .filter(|port| !old.publish.contains(port));
            self.refuse_held_ports(added).await?;
        }
        // The record first: what is in it is what the next engine puts the sandbox under.
        let record = self.record_network(id, &new, changes)?;
        if !changes {
            return Ok(record);
        }
        match self.put_under_rules(&record).await {
            Ok(()) => {
                let step = "network: publish";
                self.change(id, step, Synchronous::Normal, |sandbox, tx| {
                    sandbox.network_pending = false;
                    let detail = serde_json::json!({ "network": new });
                    tx.emit("sandbox.network", id, Some(&sandbox.name), detail)
                        .map(Some)
                })
            }
            Err(error) => {
                let back = async {
                    let record = self.record_network(id, old, true)?;
                    self.put_under_rules(&record).await?;
                    self.settle_network(id)
                };
                Err(error.and_rollback(back.await))
            }
        }
    }

    fn record_network(
        &self,
        id: SandboxId,
        network: &NetworkSpec,
        pending: bool,
    ) -> Result<SandboxRecord, EngineError> {
        self.site
            .ledger
            .write("network: record", Synchronous::Normal, |tx| {
                let mut sandbox = tx.sandbox(id)?.ok_or_else(|| super::settle::gone(id))?;
                refuse_taken(tx, id, network)?;
                sandbox.spec.network = network.clone();
                sandbox.network_pending = pending;
                tx.put_sandbox(&sandbox)?;
                Ok::<_, EngineError>(sandbox)
            })
    }

    /// Makes the rules of a running machine those of its sandbox's record.
    async fn put_under_rules(self: &Arc<Self>, record: &SandboxRecord) -> Result<(), EngineError> {
        let Some(netns) = self.netns_of(record.id)? else {
            return Ok(());
        };
        let network = &record.spec.network;
        let rules = self.inside(network, record.slot)?;
        // Nothing is opened by the old rules any more once the new ones are there.
        self.end_names(record.id).await;
        let (host, within) = (Arc::clone(&self.site.host), netns.clone());
        blocking(move || host.reload_netns(&within, &rules)).await??;
        self.serve_names(record.id, network, &netns, Sets::Empty)
            .await?;
        self.listen_for_denied(record.id, &netns).await;
        self.load_host_rules().await
    }

    fn settle_network(&self, id: SandboxId) -> Result<(), EngineError> {
        self.change(id, "network: settle", Synchronous::Normal, |sandbox, _| {
            sandbox.network_pending = false;
            Ok(None)
        })
        .map(drop)
    }

    /// Ends changes of rules that neither came to their end nor could be taken back.
    pub(crate) async fn finish_networks(
        self: &Arc<Self>,
    ) -> Result<Vec<(SandboxId, Result<(), EngineError>)>, EngineError> {
        let sandboxes = self.site.ledger.read(|tx| tx.sandboxes())?;
        let mut finished = Vec::new();
        for left in sandboxes.iter().filter(|one| one.network_pending) {
            let _busy = self.lock(left.id).await;
            let Some(record) = self.site.ledger.read(|tx| tx.sandbox(left.id))? else {
                continue;
            };
            if record.network_pending && self.live.get(record.id).is_some() {
                finished.push((record.id, self.adopt_network(&record).await));
            }
        }
        Ok(finished)
    }

    /// Takes over the network of a machine that an earlier engine started: ends a change of its rules that had begun, and
    /// answers its guest's questions.
    pub(crate) async fn adopt_network(
        self: &Arc<Self>,
        record: &SandboxRecord,
    ) -> Result<(), EngineError> {
        if record.network_pending {
            self.put_under_rules(record).await?;
            return self.settle_network(record.id);
        }
        let Some(netns) = self.netns_of(record.id)? else {
            return Ok(());
        };
        self.serve_names(record.id, &record.spec.network, &netns, Sets::Used)
            .await?;
        self.listen_again(record.id, &netns).await
    }
}
