//! What the rules stop: counted by the kernel, and the first of it told as an event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cowslip_host::{DeniedLog, DeniedPacket, NetnsSpec};
use cowslip_ledger::{SandboxRecord, Synchronous};
use cowslip_model::{NetworkMode, SandboxId, SandboxState, api};
use cowslip_network::{DENIED, LIMITED, LOG_GROUP, TABLE};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;
use crate::{Engine, blocking};

/// Who listens for the first packet that is denied to a machine.
#[derive(Default)]
pub(crate) struct Listeners(Mutex<HashMap<SandboxId, Listener>>);

struct Listener {
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Listeners {
    /// Listens to a machine no more: the log has nobody when this is done.
    pub(crate) async fn end(&self, id: SandboxId) {
        let Some(listener) = self.all().remove(&id) else {
            return;
        };
        listener.cancel.cancel();
        // One that panicked has ended as well.
        let _ = listener.task.await;
    }

    fn all(&self) -> MutexGuard<'_, HashMap<SandboxId, Listener>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A protocol in words.
fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => format!("protocol {other}"),
    }
}

impl Engine {
    /// One sandbox, with what its network has counted.
    ///
    /// # Errors
    /// When there is none, or the host does not tell.
    pub async fn inspect(&self, reference: &str) -> Result<api::Sandbox, EngineError> {
        let record = self.find_sandbox(reference)?;
        let mut sandbox = self.view_sandbox(&record)?;
        if record.state == SandboxState::Running && record.spec.network.mode == NetworkMode::Nat {
            let network = &mut sandbox.network;
            network.denied_packets = self.counted(record.id, DENIED).await?;
            if network.limits.packets.is_some() {
                network.limited_packets = self.counted(record.id, LIMITED).await?;
            }
            network.names = self.resolvers.counts(record.id);
        }
        Ok(sandbox)
    }

    /// Packets that a counter of a machine's rules has counted since they were set.
    async fn counted(
        &self,
        id: SandboxId,
        counter: &'static str,
    ) -> Result<Option<u64>, EngineError> {
        let Some(netns) = self.netns_of(id)? else {
            return Ok(None);
        };
        let host = Arc::clone(&self.site.host);
        match blocking(move || host.count(&netns, TABLE, counter)).await? {
            Ok(count) => Ok(Some(count.packets)),
            // A machine that ends meanwhile has none.
            Err(_) if self.netns_of(id)?.is_none() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells of the first packet that is denied to a machine from now on, where this host can tell.
    pub(crate) async fn listen_for_denied(self: &Arc<Self>, id: SandboxId, netns: &NetnsSpec) {
        // There is one listener at a time.
        self.listeners.end(id).await;
        match self.denied_log(netns) {
            Ok(Some(log)) => self.listen_to(id, log).await,
            Ok(None) => {}
            // What is denied is counted all the same.
            Err(error) => {
                tracing::warn!(sandbox = %id, %error, "listen for what its network denies");
            }
        }
    }

    /// Where the rules of a network tell what they deny; none where this host cannot tell.
    pub(super) fn denied_log(&self, netns: &NetnsSpec) -> Result<Option<DeniedLog>, EngineError> {
        let log = |has: bool| has.then(|| self.site.host.denied_log(netns, LOG_GROUP));
        Ok(log(self.has_packet_log()?).transpose()?)
    }

    /// Tells of the first packet that comes to a machine's log from now on.
    pub(crate) async fn listen_to(self: &Arc<Self>, id: SandboxId, mut log: DeniedLog) {
        self.listeners.end(id).await;
        let cancel = CancellationToken::new();
        let until = cancel.clone();
        let engine = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            let first = until.run_until_cancelled(log.next()).await;
            // Its namespace goes only when nobody listens in it.
            drop(log);
            match first {
                Some(Ok(packet)) => tell(&engine, id, &packet),
                Some(Err(error)) => {
                    tracing::debug!(sandbox = %id, %error, "listen for what its network denies");
                }
                None => {}
            }
        });
        self.listeners.all().insert(id, Listener { cancel, task });
    }

    /// The same at a machine that an earlier engine started, unless that one had something to tell.
    pub(crate) async fn listen_again(
        self: &Arc<Self>,
        id: SandboxId,
        netns: &NetnsSpec,
    ) -> Result<(), EngineError> {
        if self.counted(id, DENIED).await? == Some(0) {
            self.listen_for_denied(id, netns).await;
        }
        Ok(())
    }

    /// Whether rules may log what they deny.
    pub(crate) fn has_packet_log(&self) -> Result<bool, EngineError> {
        if let Some(known) = self.networks.log.get() {
            return Ok(*known);
        }
        let found = self.site.host.has_packet_log()?;
        Ok(*self.networks.log.get_or_init(|| found))
    }
}

fn tell(engine: &Weak<Engine>, id: SandboxId, packet: &DeniedPacket) {
    let Some(engine) = engine.upgrade() else {
        return;
    };
    let told = engine
        .site
        .ledger
        .write("network: denied", Synchronous::Normal, |tx| {
            let found: Option<SandboxRecord> = tx.sandbox(id)?;
            let Some(record) = found else { return Ok(None) };
            let detail = serde_json::json!({
                "protocol": protocol(packet.protocol),
                "destination": packet.destination,
                "port": packet.port,
            });
            let event = tx.emit("sandbox.denied", id, Some(&record.name), detail)?;
            Ok::<_, EngineError>(Some(event))
        });
    match told {
        Ok(Some(event)) => engine.announce(event),
        Ok(None) => {}
        Err(error) => tracing::warn!(sandbox = %id, %error, "tell what was denied first"),
    }
}
