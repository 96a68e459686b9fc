//! Networks of sandboxes: a namespace that holds the guest's tap, one end of a link to the host, and rules.
//!
//! ```text
//!   PATH (nsfs)    namespace: tap ── its rules ── uplink ═══ link     host
//! ```
//!
//! Acquire makes all of it, release deletes the link and the namespace's name: what is in a namespace goes with it, once
//! no process is in there. The link bears the mark of its handle as its alias, so that another program's interface of the
//! same name is left alone.

mod denied;
mod firewall;
mod legacy;
mod link;
mod namespace;
mod netlink;
mod ports;
mod rules;
mod shape;
mod table;

use std::collections::HashSet;
use std::error::Error as _;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cowslip_ledger::plan::Presence;
use cowslip_ledger::{Held, Reservation, Resource};
use rustix::net::netlink::NETFILTER;
use serde::{Deserialize, Serialize};

pub use self::denied::{DeniedLog, DeniedPacket, log_message};
pub use self::firewall::{DroppingChain, Firewall};
pub use self::table::{Count, Element};
use crate::error::HostError;
use crate::file::Inode;

pub(crate) use firewall::forwarding_is_dropped;
#[cfg(test)]
pub(crate) use namespace::try_out;
pub(crate) use ports::{addresses, has_address, holder as port_holder, resolv_conf};

/// The kind.
#[derive(Debug)]
pub struct Netns;

/// A network to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsSpec {
    /// The name of its namespace: a file to be, in one of our directories.
    pub path: PathBuf,
    /// The name of the host's end of the link; at most 15 bytes.
    pub link: String,
    /// What the link bears as its alias.
    pub mark: String,
    /// The address of the host's end.
    pub host: Ipv4Addr,
    /// The address of the other end, in one network with the host's.
    pub sandbox: Ipv4Addr,
    /// The name of the other end.
    pub uplink: String,
    /// What the guest is on.
    pub tap: TapSpec,
}

/// The interface that a monitor gives to its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapSpec {
    /// Its name in the namespace.
    pub name: String,
    /// Its addresses: the guest's gateway first.
    pub addresses: Vec<Ipv4Addr>,
    /// Length of the prefix of the guest's network.
    pub prefix: u8,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The guest's hardware address, which nobody is asked for.
    pub guest_mac: [u8; 6],
    /// The user and the group that may open it; none: root only.
    pub owner: Option<(u32, u32)>,
}

impl Resource for Netns {
    const KIND: &'static str = "netns";
    type Spec = NetnsSpec;
    type Identity = Inode;
}

/// Makes a network whose packets pass under `rules`, a script of nft(8), from the first one on.
pub(crate) fn acquire(slot: Reservation<Netns>, rules: &str) -> Result<Held<Netns>, HostError> {
    let spec = slot.spec().clone();
    if link::find(&spec.link)?.is_some() {
        return Err(HostError::Interface {
            operation: "make",
            name: spec.link,
            source: std::io::ErrorKind::AlreadyExists.into(),
        });
    }
    // Of a name that is taken nothing is ours to take away.
    namespace::claim(&spec.path)?;
    let made = || {
        namespace::make(&spec.path, || {
            // Beside the interfaces, which no packet passes before the host's end is up.
            let loading = rules::begin(rules::for_new(rules))?;
            let made = link::inside(&spec);
            loading.finish().and(made)
        })
    };
    let inode = link::refuse_taken(&spec)
        .and_then(|()| made())
        .and_then(|()| link::outside(&spec))
        .and_then(|()| Inode::of(&spec.path))
        .inspect_err(|_| {
            if let Err(error) = release(&spec, None) {
                // The reaper finds it by the row.
                tracing::warn!(%error, path = %spec.path.display(), "take a network down that failed");
            }
        })?;
    Ok(slot.acquired(inode)?)
}

/// Replaces the rules by one transaction.
pub(crate) fn reload(spec: &NetnsSpec, rules: &str) -> Result<(), HostError> {
    namespace::enter(&spec.path, || rules::load(rules))?
}

/// Opens the tap, for a monitor that gets it as a descriptor.
pub(crate) fn open_tap(spec: &NetnsSpec) -> Result<OwnedFd, HostError> {
    let tap = &spec.tap.name;
    let opened = namespace::enter(&spec.path, || link::attach(tap))?;
    Ok(opened.map_err(link::failed("open", tap))?.into())
}

/// Sockets for questions at an address of the namespace: for datagrams and for connections, at the same port.
pub(crate) fn listen(
    spec: &NetnsSpec,
    address: SocketAddrV4,
) -> Result<(UdpSocket, TcpListener), HostError> {
    let bind = || {
        let udp = UdpSocket::bind(address)?;
        let tcp = TcpListener::bind(address)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((udp, tcp))
    };
    let bound: std::io::Result<_> = namespace::enter(&spec.path, bind)?;
    bound.map_err(HostError::path("listen in the network", &spec.path))
}

/// Why no networks can be made here, if so.
pub(crate) fn lacks() -> Option<String> {
    let tun = Path::new(link::TUN);
    if !crate::process::is_root() {
        return Some("networks of sandboxes need an engine that is root".to_owned());
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(tun) {
        return Some(format!("open \"{}\": {error}", tun.display()));
    }
    static TRIED: OnceLock<Option<String>> = OnceLock::new();
    let tried = TRIED.get_or_init(|| {
        let error = namespace::try_out(|| rules::load(PROBE)).err()?;
        let words = std::iter::successors(error.source(), |cause| (*cause).source());
        let words: Vec<String> = words.map(ToString::to_string).collect();
        Some(format!("{error}: {}", words.join(": ")))
    });
    tried.clone()
}

/// What networks need of the kernel's packet filter, in one table.
const PROBE: &str = "table inet probe {
    chain one { type nat hook postrouting priority srcnat; ct status dnat masquerade; }
    chain two { type filter hook forward priority filter; fib daddr type local reject with tcp reset; }
}
";

/// Lets the host pass packets on; gives whether it did not.
pub(crate) fn set_forwarding(really: bool) -> Result<bool, HostError> {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    let now = std::fs::read_to_string(path).map_err(HostError::path("read", path))?;
    let missing = now.trim() == "0";
    if missing && really {
        std::fs::write(path, "1").map_err(HostError::path("write to", path))?;
    }
    Ok(missing)
}

/// Replaces rules of the host by one transaction.
pub(crate) fn load_host_rules(rules: &str) -> Result<(), HostError> {
    rules::load(rules)
}

/// Does something in the namespace of a network.
fn within<T: Send>(
    spec: &NetnsSpec,
    operation: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> Result<T, HostError> {
    namespace::enter(&spec.path, work)?.map_err(HostError::path(operation, &spec.path))
}

/// A socket to the tables of a network, as soon as one was opened. To close one takes the kernel milliseconds, so it is kept
/// from one change to the next. While it is open, so is the namespace.
#[derive(Debug, Default)]
pub struct TableSocket(Option<netlink::Socket>);

/// Puts addresses into sets of a table, all at once.
pub(crate) fn open_addresses(
    spec: &NetnsSpec,
    table: &str,
    elements: &[Element],
    kept: &mut TableSocket,
) -> Result<(), HostError> {
    const OPERATION: &str = "open addresses in the network";
    let socket = match kept.0.take() {
        Some(socket) => socket,
        None => within(spec, OPERATION, || netlink::Socket::open(Some(NETFILTER)))?,
    };
    table::add(&socket, table, elements).map_err(HostError::path(OPERATION, &spec.path))?;
    // One on which something failed may have more to say of that, and is not used again.
    kept.0 = Some(socket);
    Ok(())
}

/// What a counter of a table has counted.
pub(crate) fn count(spec: &NetnsSpec, table: &str, counter: &str) -> Result<Count, HostError> {
    within(spec, "read a counter of the network", || {
        table::count(table, counter)
    })
}

/// Packets that rules log to a group.
pub(crate) fn denied_log(spec: &NetnsSpec, group: u16) -> Result<DeniedLog, HostError> {
    const OPERATION: &str = "listen to the log of the network";
    let socket = within(spec, OPERATION, || denied::bind(group))?;
    // In the caller's thread: the other one has no runtime.
    DeniedLog::new(socket).map_err(HostError::path(OPERATION, &spec.path))
}

/// Whether rules may log packets: not every kernel has a log.
pub(crate) fn has_packet_log() -> Result<bool, HostError> {
    namespace::in_thread(table::may_log)?.map_err(|source| HostError::Rules { source })
}

/// Lets so many bytes pass in a second, in each direction; none: as many as it goes.
pub(crate) fn shape(spec: &NetnsSpec, bandwidth: Option<u64>) -> Result<(), HostError> {
    for name in [&spec.tap.name, &spec.uplink] {
        namespace::enter(&spec.path, || shape::shape(name, bandwidth))?
            .map_err(link::failed("limit the bandwidth of", name))?;
    }
    Ok(())
}

pub(crate) fn probe(spec: &NetnsSpec, identity: Option<&Inode>) -> Result<Presence, HostError> {
    let link = link::find(&spec.link)?;
    let namespace = namespace::find(&spec.path)?;
    let is_ours = |found: &link::Found| match &found.alias {
        Some(alias) => *alias == spec.mark,
        // Made, perhaps, without living to be marked: then its namespace is there as well.
        None => namespace.is_some(),
    };
    if link.as_ref().is_some_and(|found| !is_ours(found)) {
        return Ok(Presence::Foreign);
    }
    Ok(match (namespace, identity) {
        (Some(found), Some(known)) if found != *known => Presence::Foreign,
        (Some(_), _) => Presence::Present,
        (None, _) if link.is_some() || spec.path.symlink_metadata().is_ok() => Presence::Present,
        (None, _) => Presence::Absent,
    })
}

pub(crate) fn release(spec: &NetnsSpec, identity: Option<&Inode>) -> Result<(), HostError> {
    match probe(spec, identity)? {
        Presence::Absent => return Ok(()),
        Presence::Foreign => {
            return Err(HostError::Foreign {
                path: spec.path.clone(),
                why: format!("or the interface {} is another's", spec.link),
            });
        }
        Presence::Present => {}
    }
    // The name of the link is free after this, however long a namespace takes to go.
    link::remove(&spec.link)?;
    namespace::remove(&spec.path)
}

/// Names of namespaces in a directory, and links with our mark, that are not known.
pub(crate) fn strays(
    directory: &Path,
    prefix: &str,
    known: &HashSet<&str>,
) -> Result<Vec<NetnsSpec>, HostError> {
    let mut strays = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        other => Some(other.map_err(HostError::path("read", directory))?),
    };
    for entry in entries.into_iter().flatten() {
        let path = entry.map_err(HostError::path("read", directory))?.path();
        if !path.to_str().is_some_and(|path| known.contains(path)) {
            strays.push(found(path, String::new(), prefix.to_owned()));
        }
    }
    for (name, alias) in link::all()? {
        if alias.starts_with(prefix) && !known.contains(&*name) {
            let path = directory.join(&name);
            strays.push(found(path, name, alias));
        }
    }
    Ok(strays)
}

/// As much as a release needs to know of a network without a row.
fn found(path: PathBuf, link: String, mark: String) -> NetnsSpec {
    let nowhere = Ipv4Addr::UNSPECIFIED;
    NetnsSpec {
        path,
        link,
        mark,
        host: nowhere,
        sandbox: nowhere,
        uplink: String::new(),
        tap: TapSpec {
            name: String::new(),
            addresses: Vec::new(),
            prefix: 0,
            mac: [0; 6],
            guest: nowhere,
            guest_mac: [0; 6],
            owner: None,
        },
    }
}
