//! Whom guests ask for names: the host's own name server, or this engine, where the rules say which names there are.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cowslip_host::{Element, Host, NetnsSpec};
use cowslip_model::{NetworkSpec, SandboxId};
use cowslip_network::{RESOLVER, TABLE, set_name};
use cowslip_resolver::{Gate, GateError, Opening, Policy, Resolver, Servers, Upstream};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::EngineError;
use crate::{Engine, blocking};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The port of name servers.
const PORT: u16 = 53;

/// The resolvers of the machines that need one, and whom they ask.
pub(crate) struct Resolvers {
    upstream: Upstream,
    serving: Mutex<HashMap<SandboxId, Serving>>,
}

/// The resolver of one machine.
struct Serving {
    door: Arc<Door>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    /// Rules that replace others come with a resolver of their own.
    _policy: watch::Sender<Policy>,
}

impl Resolvers {
    pub(crate) fn new(config: &Config) -> Self {
        let servers = &config.network.resolvers;
        let upstream = match servers.is_empty() {
            true => Upstream::of_file(RESOLV_CONF),
            false => Upstream::new(Servers {
                addresses: servers
                    .iter()
                    .map(|server| (*server, PORT).into())
                    .collect(),
                ..Servers::default()
            }),
        };
        Self {
            upstream,
            serving: Mutex::default(),
        }
    }

    fn take(&self, id: SandboxId) -> Option<Serving> {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        serving.remove(&id)
    }
}

/// Opens addresses in the namespace of one machine, until its rules are replaced.
struct NetnsGate(Arc<Door>);

struct Door {
    host: Arc<dyn Host>,
    netns: NetnsSpec,
    /// Held while it opens. What is on its way when the rules are replaced comes before them, or not at all.
    open: Mutex<bool>,
}

#[async_trait]
impl Gate for NetnsGate {
    async fn open(&self, openings: &[Opening]) -> Result<(), GateError> {
        let elements: Vec<Element> = openings
            .iter()
            .map(|opening| Element {
                set: set_name(opening.rule),
                address: opening.address,
                lasts: opening.ttl,
            })
            .collect();
        if elements.is_empty() {
            return Ok(());
        }
        let gate = self.0.clone();
        blocking(move || {
            let open = gate.open.lock().unwrap_or_else(PoisonError::into_inner);
            if !*open {
                return Err("the rules are being replaced".into());
            }
            Ok(gate.host.open_addresses(&gate.netns, TABLE, &elements)?)
        })
        .await?
    }
}

impl Engine {
    /// The name server of the host that a guest's questions are passed on to; none: the engine answers them.
    pub(crate) fn upstream_of(&self, spec: &NetworkSpec) -> Option<Ipv4Addr> {
        if spec.governs_names() {
            return None;
        }
        if !self.config.network.resolvers.is_empty() {
            return usable(self.config.network.resolvers.iter().copied());
        }
        let text = std::fs::read_to_string(Path::new(RESOLV_CONF)).unwrap_or_default();
        first_server(&text)
    }

    /// Answers the questions of a machine's guest from now on, where the rules want it.
    pub(crate) async fn serve_names(
        &self,
        id: SandboxId,
        spec: &NetworkSpec,
        netns: &NetnsSpec,
    ) -> Result<(), EngineError> {
        // Two cannot listen at one address.
        self.end_names(id).await;
        if self.upstream_of(spec).is_some() {
            return Ok(());
        }
        let (host, within) = (Arc::clone(&self.site.host), netns.clone());
        let address = SocketAddrV4::new(RESOLVER, PORT);
        let (udp, tcp) = blocking(move || host.listen_in(&within, address)).await??;
        let unusable = |error: std::io::Error| {
            EngineError::Internal(format!("listen for questions of sandbox {id}: {error}"))
        };
        let udp = UdpSocket::from_std(udp).map_err(unusable)?;
        let tcp = TcpListener::from_std(tcp).map_err(unusable)?;
        let policy = Policy::new(spec, &[self.config.network.range.net()]);
        let (sender, receiver) = watch::channel(policy);
        let door = Arc::new(Door {
            host: Arc::clone(&self.site.host),
            netns: netns.clone(),
            open: Mutex::new(true),
        });
        let cancel = CancellationToken::new();
        let gate = Arc::new(NetnsGate(Arc::clone(&door)));
        let resolver = Resolver::new(receiver, self.resolvers.upstream.clone(), gate);
        let until = cancel.clone();
        let task = tokio::spawn(async move { resolver.serve((udp, tcp), until).await });
        let serving = Serving {
            door,
            cancel,
            task,
            _policy: sender,
        };
        let mut all = self
            .resolvers
            .serving
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.insert(id, serving);
        Ok(())
    }

    /// Answers no more, and opens nothing more: its sockets are closed when this is done.
    pub(crate) async fn end_names(&self, id: SandboxId) {
        let Some(serving) = self.resolvers.take(id) else {
            return;
        };
        *serving
            .door
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = false;
        serving.cancel.cancel();
        // One that panicked has ended as well.
        let _ = serving.task.await;
    }
}

/// The first server of a resolv.conf(5), if it can be asked by a guest.
fn first_server(text: &str) -> Option<Ipv4Addr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)?.parse().ok()
    };
    usable(text.lines().filter_map(server))
}

/// The first of IPv4, if packets can be passed on to it: one of this host's own addresses is closed to guests.
fn usable(servers: impl Iterator<Item = IpAddr>) -> Option<Ipv4Addr> {
    let mut servers = servers.filter_map(|server| match server {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    servers
        .next()
        // Only an address of this host can be bound.
        .filter(|address| std::net::UdpSocket::bind((*address, 0)).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_resolver_is_asked_if_it_can_be() {
        let server = |text| first_server(text).map(|address| address.to_string());
        let lan = "# c\nsearch a\nnameserver 192.168.1.1\nnameserver 8.8.8.8\n";
        assert_eq!(server(lan).as_deref(), Some("192.168.1.1"));
        let both = "nameserver fe80::1%eth0\nnameserver ::1\nnameserver 10.0.0.2\n";
        assert_eq!(server(both).as_deref(), Some("10.0.0.2"));
        assert_eq!(server("nameserver 127.0.0.53\noptions edns0\n"), None);
        assert_eq!(server("nameserver\nnameservers 1.1.1.1\n"), None);
        assert_eq!(server(""), None);
    }
}
