//! Interfaces: rtnetlink(7), and the one ioctl that makes a tap.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{NetnsSpec, TapSpec, namespace};
use crate::error::HostError;

/// Length of the prefix of a link's network: its two addresses.
const PAIR: u8 = 31;
const LOOPBACK: u32 = 1;
pub(super) const TUN: &str = "/dev/net/tun";

/// An interface that is there.
#[derive(Debug, Clone)]
pub(super) struct Found {
    index: u32,
    pub(super) alias: Option<String>,
}

/// Runs requests to the kernel in this thread's namespace.
fn talk<T: Send>(
    requests: impl AsyncFnOnce(&Handle) -> Result<T, rtnetlink::Error> + Send,
) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let done = requests(&handle).await.map_err(error);
        connection.abort();
        done
    })
}

fn error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

pub(super) fn failed(operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> HostError {
    let name = name.to_owned();
    move |source| HostError::Interface {
        operation,
        name,
        source,
    }
}

async fn look_up(handle: &Handle, name: &str) -> Result<Option<Found>, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let message = match links.try_next().await {
        Ok(found) => found,
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(libc::ENODEV) => {
            None
        }
        Err(error) => return Err(error),
    };
    Ok(message.map(|message| Found {
        index: message.header.index,
        alias: message.attributes.into_iter().find_map(|one| match one {
            LinkAttribute::IfAlias(alias) => Some(alias),
            _ => None,
        }),
    }))
}

async fn index(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let found = look_up(handle, name).await?;
    found
        .map(|found| found.index)
        .ok_or(rtnetlink::Error::RequestFailed)
}

/// The interface of that name in the host's namespace.
pub(super) fn find(name: &str) -> Result<Option<Found>, HostError> {
    if name.is_empty() {
        return Ok(None);
    }
    namespace::in_thread(|| talk(async |handle| look_up(handle, name).await))?
        .map_err(failed("look for", name))
}

/// Every interface of the host's namespace that has an alias, with it.
pub(super) fn all() -> Result<Vec<(String, String)>, HostError> {
    let list = async |handle: &Handle| {
        let links: Vec<_> = handle.link().get().execute().try_collect().await?;
        let named = links.into_iter().filter_map(|link| {
            let (mut name, mut alias) = (None, None);
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name = Some(text),
                    LinkAttribute::IfAlias(text) => alias = Some(text),
                    _ => {}
                }
            }
            Some((name?, alias?))
        });
        Ok(named.collect())
    };
    namespace::in_thread(|| talk(list))?.map_err(failed("look for", "of sandboxes"))
}

/// Makes what is in the namespace, where this thread is. The host's end of the link is made with the other one.
pub(super) fn inside(spec: &NetnsSpec) -> Result<(), HostError> {
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        set(name, value)?;
    }
    let TapSpec { name, .. } = &spec.tap;
    make_tap(&spec.tap).map_err(failed("make", name))?;
    // This process' first thread never leaves the namespace that the process began in.
    let path = Path::new("/proc/self/ns/net");
    let host = File::open(path).map_err(HostError::path("open", path))?;
    talk(async |handle| {
        let up = LinkUnspec::new_with_index(LOOPBACK).up();
        handle.link().set(up.build()).execute().await?;
        tap(handle, &spec.tap).await?;
        uplink(handle, spec, host.as_raw_fd()).await
    })
    .map_err(failed("set up the network around", &spec.link))
}

async fn tap(handle: &Handle, spec: &TapSpec) -> Result<(), rtnetlink::Error> {
    let tap = index(handle, &spec.name).await?;
    for address in &spec.addresses {
        handle
            .address()
            .add(tap, (*address).into(), spec.prefix)
            .execute()
            .await?;
    }
    let up = LinkUnspec::new_with_index(tap)
        .address(spec.mac.to_vec())
        .up();
    handle.link().set(up.build()).execute().await?;
    handle
        .neighbours()
        .add(tap, spec.guest.into())
        .link_layer_address(&spec.guest_mac)
        .state(NeighbourState::Permanent)
        .execute()
        .await
}

async fn uplink(handle: &Handle, spec: &NetnsSpec, host: RawFd) -> Result<(), rtnetlink::Error> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(&spec.link)
        .append_extra_attribute(LinkAttribute::IfAlias(spec.mark.clone()))
        .setns_by_fd(host)
        .build();
    let link = LinkMessageBuilder::<LinkVeth>::new(&spec.uplink, &spec.link)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    handle.link().add(link).execute().await?;
    let uplink = index(handle, &spec.uplink).await?;
    handle
        .address()
        .add(uplink, spec.sandbox.into(), PAIR)
        .execute()
        .await?;
    let up = LinkUnspec::new_with_index(uplink).up();
    handle.link().set(up.build()).execute().await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(uplink)
        .gateway(spec.host)
        .build();
    handle.route().add(route).execute().await
}

/// Refuses an address that the host has already: another engine's range is the same, or one of the host's networks is
/// within it.
pub(super) fn refuse_taken(spec: &NetnsSpec) -> Result<(), HostError> {
    let look = async |handle: &Handle| {
        let addresses = handle.address().get().set_address_filter(spec.host.into());
        addresses
            .execute()
            .try_next()
            .await
            .map(|found| found.is_some())
    };
    match namespace::in_thread(|| talk(look))?
        .map_err(failed("look for the address of", &spec.link))?
    {
        true => Err(HostError::AddressTaken { address: spec.host }),
        false => Ok(()),
    }
}

/// Sets up the host's end.
pub(super) fn outside(spec: &NetnsSpec) -> Result<(), HostError> {
    let name = &spec.link;
    let set_up = async |handle: &Handle| {
        let link = index(handle, name).await?;
        // A new link's alias is not taken from its first message by every kernel.
        let marked = LinkUnspec::new_with_index(link).alias(&spec.mark);
        handle.link().set(marked.build()).execute().await?;
        handle
            .address()
            .add(link, spec.host.into(), PAIR)
            .execute()
            .await?;
        let up = LinkUnspec::new_with_index(link).up();
        handle.link().set(up.build()).execute().await
    };
    namespace::in_thread(|| {
        set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        set(&format!("ipv4/conf/{name}/forwarding"), "1")?;
        // So that ports published on 127.0.0.1 lead somewhere.
        set(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
        talk(set_up).map_err(failed("set up", name))
    })?
}

/// Deletes the host's end, and with it the other one.
pub(super) fn remove(name: &str) -> Result<(), HostError> {
    if name.is_empty() {
        return Ok(());
    }
    let delete = async |handle: &Handle| match look_up(handle, name).await? {
        Some(found) => handle.link().del(found.index).execute().await,
        None => Ok(()),
    };
    namespace::in_thread(|| talk(delete))?.map_err(failed("delete", name))
}

/// Writes a setting of this thread's namespace.
fn set(name: &str, value: &str) -> Result<(), HostError> {
    // A dot in an interface's name is one here as well: this is a path.
    let path = Path::new("/proc/sys/net").join(name);
    match std::fs::write(&path, value) {
        // A kernel without IPv6 has nothing to turn off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6") => Ok(()),
        other => other.map_err(HostError::path("write to", &path)),
    }
}

/// Makes a tap that stays without a process that has it open.
#[allow(unsafe_code)]
fn make_tap(spec: &TapSpec) -> io::Result<()> {
    let tun = attach(&spec.name)?;
    let fd = tun.as_raw_fd();
    if let Some((user, group)) = spec.owner {
        // SAFETY: both take a number.
        check(unsafe { libc::ioctl(fd, libc::TUNSETOWNER, libc::c_ulong::from(user)) })?;
        // SAFETY: as above.
        check(unsafe { libc::ioctl(fd, libc::TUNSETGROUP, libc::c_ulong::from(group)) })?;
    }
    // SAFETY: takes a number.
    check(unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, 1 as libc::c_ulong) })
}

/// Opens the tap of that name in this thread's namespace; makes it where it is not there.
#[allow(unsafe_code)]
pub(super) fn attach(name: &str) -> io::Result<File> {
    let tun = OpenOptions::new().read(true).write(true).open(TUN)?;
    // SAFETY: all zeros is a value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = name.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the request is a whole ifreq, which the kernel reads and writes.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(tun)
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
