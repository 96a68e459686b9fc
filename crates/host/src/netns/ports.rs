//! Who has a port or an address of the host, and whom it asks for names.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

use cowslip_model::{PublishedPort, Transport};

use super::netlink::{self, DUMP, Message, Socket};
use crate::error::HostError;

/// `RTM_GETADDR`, `IFA_LOCAL`, `AF_INET`.
const GET_ADDRESS: u16 = 22;
const LOCAL: u16 = 2;
const INET: u8 = 2;
const NAMESPACE: &str = "/proc/thread-self/ns/net";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Who listens where a port is to be published, in words. Only a try tells, and only a look at all processes who it is.
pub(crate) fn holder(port: &PublishedPort) -> Result<Option<String>, HostError> {
    let address = port.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let at = SocketAddrV4::new(address, port.host.get());
    let tried = match port.transport {
        Transport::Tcp => TcpListener::bind(at).map(drop),
        Transport::Udp => UdpSocket::bind(at).map(drop),
    };
    match tried {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let name = find(port).unwrap_or_else(|| "another program".to_owned());
            Ok(Some(name))
        }
        Err(error) => Err(HostError::process("try the port", at)(error)),
    }
}

/// The text of resolv.conf(5). A comment in it may be in any encoding.
pub(crate) fn resolv_conf() -> Result<String, HostError> {
    let path = Path::new(RESOLV_CONF);
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(HostError::path("read", path)(error)),
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// All addresses of this host, in no order. Of this thread's namespace.
pub(crate) fn addresses() -> Result<Vec<Ipv4Addr>, HostError> {
    // `struct ifaddrmsg` of any interface.
    let all = Message::new(GET_ADDRESS, DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0]);
    let told = Socket::open(None).and_then(|socket| socket.list(all));
    let told = told.map_err(HostError::path(
        "list the addresses in",
        Path::new(NAMESPACE),
    ))?;
    let local = |answer: &Vec<u8>| {
        let local = netlink::attribute(answer.get(8..)?, LOCAL)?;
        local.first_chunk::<4>().copied().map(Ipv4Addr::from)
    };
    Ok(told.iter().filter_map(local).collect())
}

/// Whether an address is one of this host's: only such a one can be bound.
pub(crate) fn has_address(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The process that has the port, as "sshd (process 123)".
fn find(port: &PublishedPort) -> Option<String> {
    let tables = match port.transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| sockets(&text, port))
        .collect();
    let processes = fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // One that ends meanwhile, or is not ours to look at, is not named.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let is_it = |inode: u64| inodes.contains(&inode);
        if files
            .flatten()
            .any(|file| fs::metadata(file.path()).is_ok_and(|found| is_it(found.ino())))
        {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// Inodes of the sockets in a table of `/proc/net` that are bound to the port and wait for others.
fn sockets(table: &str, port: &PublishedPort) -> Vec<u64> {
    // TCP_LISTEN, and what an unconnected socket for datagrams is in.
    let waiting = match port.transport {
        Transport::Tcp => "0A",
        Transport::Udp => "07",
    };
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, bound) = fields.get(1)?.rsplit_once(':')?;
        let is_it =
            u16::from_str_radix(bound, 16).ok()? == port.host.get() && *fields.get(3)? == waiting;
        fields.get(9).filter(|_| is_it)?.parse().ok()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_this_host_is_its_own() {
        assert!(has_address(Ipv4Addr::LOCALHOST));
        assert!(!has_address(Ipv4Addr::new(192, 0, 2, 77)));
        resolv_conf().unwrap();
        let all = addresses().unwrap();
        assert!(all.contains(&Ipv4Addr::LOCALHOST));
        assert!(all.iter().all(|address| has_address(*address)), "{all:?}");
    }

    #[test]
    fn a_taken_port_names_who_has_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = tcp.local_addr().unwrap().port();
        let port = |text: String| text.parse::<PublishedPort>().unwrap();
        let me = format!("(process {})", std::process::id());
        for text in [format!("{number}:80"), format!("127.0.0.1:{number}:80")] {
            let found = holder(&port(text.clone())).unwrap();
            assert!(
                found.as_ref().is_some_and(|name| name.ends_with(&me)),
                "{text}: {found:?}"
            );
        }
        assert_eq!(
            holder(&port(format!("127.0.0.2:{number}:80"))).unwrap(),
            None
        );
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let number = udp.local_addr().unwrap().port();
        let found = holder(&port(format!("{number}:53/udp"))).unwrap();
        assert!(found.is_some_and(|name| name.ends_with(&me)));
        drop(tcp);
        assert!(
            holder(&port("192.0.2.77:8080:80".to_owned())).is_err(),
            "an address of another host"
        );
    }
}
