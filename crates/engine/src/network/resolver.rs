//! Whom guests ask for names: the host's own name server, or this engine, where the rules say which names there are.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use cowslip_host::{Element, Host, NetnsSpec, TableSocket};
use cowslip_model::{NetworkSpec, SandboxId, api};
use cowslip_network::{RESOLVER, TABLE, set_name};
use cowslip_resolver::{Gate, GateError, Opening, Policy, Resolver, Servers, Upstream};
use tokio::net::{TcpListener, UdpSocket};
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
    resolver: Resolver,
}

impl Resolvers {
    pub(crate) fn new(config: &Config) -> Self {
        let upstream = match config.network.resolvers.is_empty() {
            true => Upstream::of_file(RESOLV_CONF),
            false => Upstream::new(given(config)),
        };
        Self {
            upstream,
            serving: Mutex::default(),
        }
    }

    /// What became of the questions of a machine's guest; none: they are not answered here.
    pub(crate) fn counts(&self, id: SandboxId) -> Option<api::NameCounts> {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        Some(serving.get(&id)?.resolver.counts())
    }

    fn take(&self, id: SandboxId) -> Option<Serving> {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        serving.remove(&id)
    }
}

/// What is in the sets of names when a resolver begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sets {
    /// Nothing: the rules are new.
    Empty,
    /// What another engine put there.
    Used,
}

/// Addresses that are remembered as open; more, and those whose time is over are forgotten.
const REMEMBERED: usize = 8192;

/// Opens addresses in the namespace of one machine, until its rules are replaced.
struct NetnsGate(Arc<Door>);

struct Door {
    host: Arc<dyn Host>,
    netns: NetnsSpec,
    /// Held while it opens. What is on its way when the rules are replaced comes before them, or not at all.
    state: Mutex<Opened>,
}

/// What is open.
struct Opened {
    /// Nothing is opened any more.
    shut: bool,
    /// Nothing is but what is known: the sets were empty in the beginning.
    from_nothing: bool,
    /// What it tells the kernel by.
    socket: TableSocket,
    /// Until when each address is open, by its rule.
    until: HashMap<(usize, Ipv4Addr), Instant>,
}

impl Opened {
    /// What the kernel must be told so that these are open; none of what is open for long enough.
    fn missing(&self, openings: &[Opening], now: Instant) -> Vec<(Element, (usize, Ipv4Addr))> {
        let element = |opening: &Opening| {
            let key = (opening.rule, opening.address);
            let until = self.until.get(&key);
            if until.is_some_and(|until| *until >= now + opening.ttl) {
                return None;
            }
            let element = Element {
                set: set_name(opening.rule),
                address: opening.address,
                lasts: opening.ttl,
                fresh: self.from_nothing && until.is_none(),
            };
            Some((element, key))
        };
        openings.iter().filter_map(element).collect()
    }
}

impl Door {
    fn open(&self, openings: &[Opening]) -> Result<(), GateError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.shut {
            return Err("the rules are being replaced".into());
        }
        let now = Instant::now();
        let missing = state.missing(openings, now);
        if missing.is_empty() {
            return Ok(());
        }
        let elements: Vec<Element> = missing.iter().map(|(element, _)| element.clone()).collect();
        let kept = &mut state.socket;
        self.host
            .open_addresses(&self.netns, TABLE, &elements, kept)?;
        if state.until.len() > REMEMBERED {
            state.until.retain(|_, until| *until > now);
        }
        for (element, key) in missing {
            state.until.insert(key, now + element.lasts);
        }
        Ok(())
    }
}

#[async_trait]
impl Gate for NetnsGate {
    async fn open(&self, openings: &[Opening]) -> Result<(), GateError> {
        if openings.is_empty() {
            return Ok(());
        }
        let (door, openings) = (Arc::clone(&self.0), openings.to_vec());
        blocking(move || door.open(&openings)).await?
    }
}

impl Engine {
    /// The name server of the host that a guest's questions are passed on to; none: the engine answers them.
    pub(crate) fn upstream_of(&self, spec: &NetworkSpec) -> Result<Option<Ipv4Addr>, EngineError> {
        if spec.governs_names() {
            return Ok(None);
        }
        let host = &self.site.host;
        let servers = match self.config.network.resolvers.is_empty() {
            true => Servers::parse(&host.resolv_conf()?),
            false => given(&self.config),
        };
        // What is passed on to one of this host's own addresses is stopped there.
        Ok(first_of_ipv4(&servers).filter(|address| !host.has_address(*address)))
    }

    /// Answers the questions of a machine's guest from now on, where the rules want it.
    pub(crate) async fn serve_names(
        &self,
        id: SandboxId,
        spec: &NetworkSpec,
        netns: &NetnsSpec,
        sets: Sets,
    ) -> Result<(), EngineError> {
        // Two cannot listen at one address.
        self.end_names(id).await;
        // Which of both an earlier engine's rules say is not known; who answers unasked does no harm.
        if sets == Sets::Empty && self.upstream_of(spec)?.is_some() {
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
        let door = Arc::new(Door {
            host: Arc::clone(&self.site.host),
            netns: netns.clone(),
            state: Mutex::new(Opened {
                shut: false,
                from_nothing: sets == Sets::Empty,
                socket: TableSocket::default(),
                until: HashMap::new(),
            }),
        });
        let cancel = CancellationToken::new();
        let gate = Arc::new(NetnsGate(Arc::clone(&door)));
        let resolver = Resolver::new(policy, self.resolvers.upstream.clone(), gate);
        let (until, server) = (cancel.clone(), resolver.clone());
        let task = tokio::spawn(async move { server.serve((udp, tcp), until).await });
        let serving = Serving {
            door,
            cancel,
            task,
            resolver,
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
        let socket = {
            let state = serving.door.state.lock();
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            state.shut = true;
            std::mem::take(&mut state.socket)
        };
        serving.cancel.cancel();
        // A thread that panics has closed it as well.
        let _ = blocking(move || drop(socket)).await;
        // One that panicked has ended as well.
        let _ = serving.task.await;
    }
}

/// The servers that the configuration names.
fn given(config: &Config) -> Servers {
    let servers = config.network.resolvers.iter();
    Servers {
        addresses: servers.map(|server| (*server, PORT).into()).collect(),
        ..Servers::default()
    }
}

fn first_of_ipv4(servers: &Servers) -> Option<Ipv4Addr> {
    let addresses = servers.addresses.iter();
    let mut addresses = addresses.filter_map(|server| match server.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    addresses.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_for_long_enough_is_not_opened_again() {
        let now = Instant::now();
        let seconds = std::time::Duration::from_secs;
        let opening = |address: u8, ttl| Opening {
            rule: 1,
            address: Ipv4Addr::new(192, 0, 2, address),
            ttl: seconds(ttl),
        };
        let mut state = Opened {
            shut: false,
            from_nothing: true,
            socket: TableSocket::default(),
            until: HashMap::from([((1, Ipv4Addr::new(192, 0, 2, 1)), now + seconds(60))]),
        };
        let both = [opening(1, 60), opening(2, 60)];
        let missing = state.missing(&both, now);
        assert_eq!(missing.len(), 1);
        let (element, key) = &missing[0];
        assert_eq!((element.fresh, key.1.octets()[3]), (true, 2));
        // One that is there would run out too early: it is put there anew.
        let missing = state.missing(&[opening(1, 61)], now);
        assert!(!missing[0].0.fresh);
        state.from_nothing = false;
        assert!(!state.missing(&both, now)[0].0.fresh);
    }

    #[test]
    fn the_first_name_server_of_ipv4_is_asked() {
        let server = |text| first_of_ipv4(&Servers::parse(text)).map(|address| address.to_string());
        let lan = "# c\nsearch a\nnameserver 192.168.1.1\nnameserver 8.8.8.8\n";
        assert_eq!(server(lan).as_deref(), Some("192.168.1.1"));
        let both = "nameserver ::1\nnameserver 10.0.0.2\n";
        assert_eq!(server(both).as_deref(), Some("10.0.0.2"));
        assert_eq!(server("nameserver ::1\n"), None);
        // Without one the host itself is.
        assert_eq!(server("").as_deref(), Some("127.0.0.1"));
    }
}
