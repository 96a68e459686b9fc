//! Networks of machines: which one a sandbox gets, made for a machine, and the rules of the host for all of them.
//!
//! ```text
//!   spec ─► inside: rules of the namespace ─┐
//!   slot ─► addresses, names of links ──────┴─► Netns handle of the machine ─► the monitor's tap
//!   all sandboxes' published ports ─► one table of the host, replaced as a whole
//! ```
//!
//! A sandbox's slot is its number for its uid and its addresses alike: taken with its record, free with it.

mod denied;
mod ports;
mod resolver;
mod slot;
mod spare;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use cowslip_host::{DeniedLog, Netns, NetnsSpec};
use cowslip_ledger::{HandleState, Held, Owner, Resource, SandboxRecord};
use cowslip_model::network::PublishedPort;
use cowslip_model::{MonitorKind, NetworkMode, NetworkSpec, SandboxId, api};
use cowslip_network::{
    GATEWAY, GUEST, GUEST_MAC, HostRules, Inside, PREFIX, RESOLVER, Slot, SlotAddresses,
};
use cowslip_proto::client::GuestNetwork;
use cowslip_vmm::{NetworkInterface, NetworkTo};

use crate::config::NetworkChoice;
use crate::error::EngineError;
use crate::{Engine, blocking};

pub(crate) use denied::Listeners;
use ports::holds;
pub(crate) use ports::refuse_taken;
pub(crate) use resolver::{Resolvers, Sets};
pub use slot::netns_spec;
pub(crate) use spare::{Slots, Spares, Taken};

/// What an engine knows of the host's rules.
#[derive(Default)]
pub(crate) struct Networks {
    /// The rules that it loaded last; none: what is there is not known. Held while they are replaced.
    loaded: tokio::sync::Mutex<Option<String>>,
    /// Whether rules may log packets, once that is known.
    log: OnceLock<bool>,
}

/// What a guest with such a network is told of it: the same as every other.
pub(crate) fn of_guest(mode: NetworkMode) -> Option<GuestNetwork> {
    let connected = match mode {
        NetworkMode::Nat | NetworkMode::User => true,
        NetworkMode::None => false,
    };
    connected.then(|| GuestNetwork {
        mac: GUEST_MAC,
        address: GUEST,
        prefix: PREFIX,
        gateway: GATEWAY,
        resolvers: vec![RESOLVER],
    })
}

impl Engine {
    /// The network that a request asks for, or the configuration's.
    pub(crate) fn network_of(
        &self,
        request: api::NetworkRequest,
        vmm: MonitorKind,
    ) -> Result<NetworkSpec, EngineError> {
        let spec = NetworkSpec {
            mode: request.mode.unwrap_or_else(|| self.usual_network()),
            allow: request.allow,
            deny: request.deny,
            publish: request.publish,
            limits: request.limits,
        };
        self.check_network(&spec, vmm)?;
        Ok(spec)
    }

    /// Refuses what no network can be here.
    pub(crate) fn check_network(
        &self,
        spec: &NetworkSpec,
        vmm: MonitorKind,
    ) -> Result<(), EngineError> {
        spec.check()
            .map_err(|error| EngineError::Invalid(error.to_string()))?;
        if spec.mode == NetworkMode::User && vmm == MonitorKind::Firecracker {
            return Err(EngineError::Invalid(
                "Firecracker has no user-mode network: take --network nat or none, or --vmm qemu"
                    .to_owned(),
            ));
        }
        match self.site.host.lacks_networks() {
            Some(why) if spec.mode == NetworkMode::Nat => Err(EngineError::Unsupported(format!(
                "this engine makes no network ({why}): take --network none, or --network user, which reaches what its \
                 user's programs reach"
            ))),
            _ => Ok(()),
        }
    }

    /// How sandboxes are connected that ask for nothing.
    pub(crate) fn usual_network(&self) -> NetworkMode {
        match self.config.network.mode {
            NetworkChoice::Nat => NetworkMode::Nat,
            NetworkChoice::User => NetworkMode::User,
            NetworkChoice::None => NetworkMode::None,
            NetworkChoice::Auto if self.site.host.lacks_networks().is_none() => NetworkMode::Nat,
            NetworkChoice::Auto => NetworkMode::None,
        }
    }

    /// Makes what the machine of a sandbox is connected to.
    pub(crate) async fn make_network(
        self: &Arc<Self>,
        record: &SandboxRecord,
    ) -> Result<Option<NetworkInterface>, EngineError> {
        let network = &record.spec.network;
        let to = match network.mode {
            NetworkMode::None => return Ok(None),
            NetworkMode::User => NetworkTo::User {
                guest: GUEST,
                publish: network.publish.clone(),
            },
            NetworkMode::Nat => {
                let (netns, log) = self.make_namespace(record).await?;
                self.shape(network, record.spec.vmm, &netns).await?;
                self.serve_names(record.id, network, &netns, Sets::Empty)
                    .await?;
                match log {
                    Some(log) => self.listen_to(record.id, log).await,
                    None => self.listen_for_denied(record.id, &netns).await,
                }
                NetworkTo::Namespace(netns)
            }
        };
        Ok(Some(NetworkInterface {
            mac: GUEST_MAC,
            limits: network.limits,
            to,
        }))
    }

    /// The network of a machine, and its log where one is open.
    async fn make_namespace(
        &self,
        record: &SandboxRecord,
    ) -> Result<(NetnsSpec, Option<DeniedLog>), EngineError> {
        self.require_forwarding()?;
        self.refuse_held_ports(record.spec.network.publish.iter())
            .await?;
        let rules = self.inside(&record.spec.network, record.slot)?;
        let made = match self.take_spare(record, &rules).await? {
            Some(Taken { spec, log }) => (spec, log),
            None => {
                let owner = Owner::Machine(record.id);
                (self.make_netns(owner, record.slot, rules).await?, None)
            }
        };
        self.spares.want();
        // From here on its ports lead to it. Without any the rules are what they were when the network was made.
        if !record.spec.network.publish.is_empty() || !self.host_rules_are_loaded().await {
            self.load_host_rules().await?;
        }
        Ok(made)
    }

    /// Makes the network of a slot for `owner`.
    async fn make_netns(
        &self,
        owner: Owner,
        slot: u32,
        rules: String,
    ) -> Result<NetnsSpec, EngineError> {
        let spec = self.netns_spec(slot)?;
        let reserved = self
            .site
            .ledger
            .reserve::<Netns>(owner, spec.clone(), &[])?;
        // The host's rules before it: no packet of a sandbox ever passes without them. Its row before those, so that
        // they do not go with a network that ends meanwhile.
        self.load_host_rules().await?;
        let host = Arc::clone(&self.site.host);
        blocking(move || host.make_netns(reserved, &rules).map(Held::settle)).await??;
        Ok(spec)
    }

    /// Keeps a guest to its bandwidth. Firecracker does so itself.
    async fn shape(
        &self,
        network: &NetworkSpec,
        vmm: MonitorKind,
        netns: &NetnsSpec,
    ) -> Result<(), EngineError> {
        let Some(bandwidth) = network
            .limits
            .bandwidth
            .filter(|_| vmm == MonitorKind::Qemu)
        else {
            return Ok(());
        };
        let (host, netns) = (Arc::clone(&self.site.host), netns.clone());
        blocking(move || host.shape_netns(&netns, Some(bandwidth.bytes()))).await??;
        Ok(())
    }

    /// The rules inside of a sandbox's namespace.
    pub(crate) fn inside(&self, spec: &NetworkSpec, slot: u32) -> Result<String, EngineError> {
        let range = self.config.network.range;
        let inside = Inside {
            spec,
            addresses: self.addresses(slot)?,
            range,
            resolver: self.upstream_of(spec)?,
            host: &self.site.host.addresses()?,
            log: self.has_packet_log()?,
        };
        Ok(inside.to_string())
    }

    /// The addresses of a slot.
    pub(crate) fn addresses(&self, slot: u32) -> Result<SlotAddresses, EngineError> {
        let range = self.config.network.range;
        let found = range.addresses(Slot(slot));
        found.ok_or_else(|| self.out_of_addresses())
    }

    fn out_of_addresses(&self) -> EngineError {
        let range = self.config.network.range;
        EngineError::NoSpace(format!(
            "all {} pairs of addresses of network.range ({range}) are in use: remove sandboxes, or give a larger one",
            range.slots()
        ))
    }

    fn netns_spec(&self, slot: u32) -> Result<NetnsSpec, EngineError> {
        let (instance, range) = (self.site.ledger.instance(), self.config.network.range);
        let owner = self.credentials(slot).map(|user| (user.uid, user.gid));
        let spec = slot::netns_spec(&self.site.layout, instance, range, slot, owner);
        spec.ok_or_else(|| self.out_of_addresses())
    }

    /// Lets the host pass packets on, or says that it does not.
    fn require_forwarding(&self) -> Result<(), EngineError> {
        let really = self.config.network.set_forwarding;
        // A setting of the kernel: nothing that waits.
        match self.site.host.set_forwarding(really)? {
            true if really => {
                tracing::info!("the host passes packets on from now on: net.ipv4.ip_forward = 1");
                Ok(())
            }
            true => Err(EngineError::Unsupported(
                "this host passes no packets on, and network.set_forwarding = false keeps the engine from changing that: \
                 set net.ipv4.ip_forward = 1 (sysctl), or take --network none"
                    .to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// Whether the last attempt to replace the host's rules did so.
    async fn host_rules_are_loaded(&self) -> bool {
        self.networks.loaded.lock().await.is_some()
    }

    /// Replaces the host's rules where they are not those that the networks need; without any they go.
    pub(crate) async fn load_host_rules(&self) -> Result<(), EngineError> {
        // One after the other, each with what the ledger says by then.
        let mut loaded = self.networks.loaded.lock().await;
        let (networks, sandboxes) = self.site.ledger.read(|tx| {
            let networks = tx.owners_of_kind(Netns::KIND)?;
            Ok::<_, EngineError>((networks, tx.publishing()?))
        })?;
        let whole = networks
            .iter()
            .filter(|(_, state)| *state == HandleState::Held);
        let owners: HashSet<Owner> = whole.map(|(owner, _)| *owner).collect();
        // What is left of a machine that has failed keeps no port from others.
        let connected = |sandbox: &SandboxRecord| {
            owners.contains(&Owner::Machine(sandbox.id)) && holds(sandbox)
        };
        let mut published: Vec<(&PublishedPort, Ipv4Addr)> = Vec::new();
        for sandbox in sandboxes.iter().filter(|sandbox| connected(sandbox)) {
            let address = self.addresses(sandbox.slot)?.sandbox;
            published.extend(
                sandbox
                    .spec
                    .network
                    .publish
                    .iter()
                    .map(|port| (port, address)),
            );
        }
        let instance = self.site.ledger.instance();
        let rules = HostRules {
            instance,
            range: self.config.network.range,
            published,
        };
        let rules = match networks.is_empty() {
            true => HostRules::none(instance),
            false => rules.to_string(),
        };
        if loaded.as_ref() == Some(&rules) {
            return Ok(());
        }
        let (host, script) = (Arc::clone(&self.site.host), rules.clone());
        // What is there is not known until it is.
        *loaded = None;
        blocking(move || host.load_host_rules(&script)).await??;
        *loaded = Some(rules);
        Ok(())
    }

    /// Makes the host's rules those of the machines that are there, whatever was left of others.
    pub(crate) async fn renew_host_rules(&self) {
        if self.site.host.lacks_networks().is_some() {
            return;
        }
        if let Err(error) = self.load_host_rules().await {
            let why = crate::error::chain(&error).join(": ");
            tracing::warn!(why, "the host's rules are left as they were");
        }
    }

    /// After a machine has ended: the host's ports that led to it are free, and its rules go with the last network.
    pub(crate) async fn unpublish(&self) {
        if self.site.host.lacks_networks().is_some() {
            return;
        }
        // They lead nowhere, and the next change of the rules takes them away, or `gc`.
        if let Err(error) = self.load_host_rules().await {
            tracing::warn!(%error, "rules of a machine that has ended are left on the host");
        }
    }

    /// The handle of a running machine's network.
    pub(crate) fn netns_of(&self, id: SandboxId) -> Result<Option<NetnsSpec>, EngineError> {
        let rows = self
            .site
            .ledger
            .read(|tx| tx.handles_of(Owner::Machine(id)))?;
        let row = rows.iter().find(|row| row.kind == Netns::KIND);
        Ok(row.map(|row| row.spec::<Netns>()).transpose()?)
    }

    /// The network of a sandbox, as the API shows it.
    pub(crate) fn view_network(&self, record: &SandboxRecord) -> api::Network {
        let spec = record.spec.network.clone();
        let address = match spec.mode {
            NetworkMode::Nat => self.addresses(record.slot).ok().map(|pair| pair.sandbox),
            NetworkMode::User | NetworkMode::None => None,
        };
        api::Network {
            mode: spec.mode,
            allow: spec.allow,
            deny: spec.deny,
            publish: spec.publish,
            limits: spec.limits,
            address,
            denied_packets: None,
            limited_packets: None,
            names: None,
        }
    }
}
