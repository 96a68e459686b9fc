//! The namespaces, and who talks in them.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use cowslip_model::NetworkSpec;
use cowslip_network::{
    AddressRange, GATEWAY, GUEST, HostRules, Inside, RESOLVER, Slot, TABLE, TAP, UPLINK, set_name,
};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A server of the internet, and what else its machine can be reached by.
pub(crate) const SITE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The host's address in the internet, and its private one.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 1);
pub(crate) const HOST_PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);
/// What a connection that nobody answers may take. Closed ones are most often refused at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Namespaces that go with it.
pub(crate) struct Lab(String);

impl Lab {
    fn new(name: &str) -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        let found = |program| Command::new(program).arg("-V").output().is_ok();
        if !root || !found("ip") || !found("nft") {
            eprintln!("SKIPPED: namespaces need root, ip and nft");
            return None;
        }
        let lab = Self(format!("cowslip-{}-{name}", std::process::id()));
        for namespace in ["guest", "sandbox", "host", "site"] {
            ip(&["netns", "add", &lab.name(namespace)]);
            lab.ip(namespace, "link set lo up");
        }
        Some(lab)
    }

    fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.0)
    }

    fn ip(&self, namespace: &str, words: &str) {
        let name = self.name(namespace);
        let words = words.split_whitespace();
        ip(&["-n", &name].into_iter().chain(words).collect::<Vec<_>>());
    }

    /// A cable between two of them.
    fn link(&self, [one, its]: [&str; 2], [two, theirs]: [&str; 2]) {
        let other = self.name(two);
        self.ip(
            one,
            &format!("link add name {its} type veth peer name {theirs} netns {other}"),
        );
        self.ip(one, &format!("link set dev {its} up"));
        self.ip(two, &format!("link set dev {theirs} up"));
    }

    /// Does something in a namespace.
    pub(crate) fn inside<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name(namespace));
        let file = File::open(path).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    pub(crate) fn load(&self, namespace: &str, rules: &str) {
        self.inside(namespace, || {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = nft.stdin.take().unwrap();
            stdin.write_all(rules.as_bytes()).unwrap();
            drop(stdin);
            assert!(nft.wait().unwrap().success());
        });
    }

    fn set(&self, namespace: &str, name: &str) {
        let path = format!("/proc/sys/net/ipv4/{name}");
        self.inside(namespace, || std::fs::write(path, "1").unwrap());
    }

    /// Gives the sandbox these rules.
    pub(crate) fn rules(&self, spec: &NetworkSpec, resolver: Option<Ipv4Addr>) {
        let range = AddressRange::default();
        let inside = Inside {
            spec,
            addresses: range.addresses(Slot(300)).unwrap(),
            range,
            resolver,
            host: &[HOST, HOST_PRIVATE],
            log: true,
        };
        self.load("sandbox", &inside.to_string());
    }

    /// Opens an address to the name of the first rule, for some seconds.
    pub(crate) fn open(&self, address: Ipv4Addr, seconds: u64) {
        let set = set_name(0);
        let element = format!("add element inet {TABLE} {set} {{ {address} timeout {seconds}s }}");
        self.load("sandbox", &element);
    }

    /// Packets that a counter of the sandbox has seen.
    pub(crate) fn counted(&self, counter: &str) -> u64 {
        let words = ["-j", "list", "counter", "inet", TABLE, counter];
        let output = self.inside("sandbox", || {
            Command::new("nft").args(words).output().unwrap()
        });
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        listed["nftables"][1]["counter"]["packets"]
            .as_u64()
            .unwrap()
    }

    /// Empties the sandbox's table of connections, as if its guest had been restored in another namespace.
    pub(crate) fn forget_connections(&self) {
        // IPCTNL_MSG_CT_DELETE without a word on which, to be acknowledged.
        let mut message = [0_u8; 20];
        for (at, word) in [(0, 20_u16), (4, 0x102), (6, 0x5)] {
            message[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        let answer = self.inside("sandbox", || {
            let netlink = AddressFamily::NETLINK;
            let socket = net::socket(netlink, SocketType::RAW, Some(net::netlink::NETFILTER));
            let socket = socket.unwrap();
            net::send(&socket, &message, SendFlags::empty()).unwrap();
            let mut answer = [0; 64];
            net::recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
            answer
        });
        assert_eq!(answer[16..20], [0; 4], "no error");
    }

    /// Sends back what whoever connects says.
    pub(crate) fn echo(&self, namespace: &str, port: u16) {
        let listener = self.inside(namespace, || TcpListener::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut from = stream.unwrap();
                let mut to = from.try_clone().unwrap();
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        });
    }

    /// A connection to somebody who sends everything back.
    pub(crate) fn connect(
        &self,
        from: &str,
        to: Ipv4Addr,
        port: u16,
    ) -> std::io::Result<TcpStream> {
        self.inside(from, || {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// Tells whoever connects as whom it sees them.
    pub(crate) fn serve(&self, namespace: &str, ports: &[u16]) {
        for port in ports {
            let listener =
                self.inside(namespace, || TcpListener::bind(("0.0.0.0", *port)).unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let seen = stream.peer_addr().unwrap().ip().to_string();
                    let _ = stream.write_all(seen.as_bytes());
                }
            });
        }
    }

    /// Answers each datagram with the address that it sees as its sender's.
    pub(crate) fn serve_datagrams(&self, namespace: &str, port: u16) {
        let socket = self.inside(namespace, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }

    /// As whom that sees a datagram from a namespace; none where no answer comes.
    pub(crate) fn datagram_seen(&self, from: &str, to: Ipv4Addr, port: u16) -> Option<String> {
        self.inside(from, || {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect((to, port)).ok()?;
            socket.send(b"?").ok()?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    }

    /// As whom a server sees what connects from a namespace; none where it is closed.
    pub(crate) fn seen(&self, from: &str, to: Ipv4Addr, port: u16) -> Option<String> {
        self.inside(from, || {
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in ["guest", "sandbox", "host", "site"] {
            let _ = Command::new("ip")
                .args(["netns", "delete", &self.name(namespace)])
                .status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "{arguments:?}");
}

/// A sandbox with these rules, its host and the internet.
pub(crate) fn lab(name: &str, spec: &NetworkSpec, resolver: Option<Ipv4Addr>) -> Option<Lab> {
    let lab = Lab::new(name)?;
    let range = AddressRange::default();
    let addresses = range.addresses(Slot(300)).unwrap();
    let instance = "00000000000000aa".parse().unwrap();
    let link = format!("{}0", HostRules::link_prefix(instance));
    lab.link(["site", "eth0"], ["host", "eth0"]);
    lab.ip("host", &format!("address add {HOST}/24 dev eth0"));
    lab.ip("host", &format!("address add {HOST_PRIVATE}/24 dev eth0"));
    lab.ip("host", &format!("route add {METADATA} dev eth0"));
    for address in [SITE, PRIVATE] {
        lab.ip("site", &format!("address add {address}/24 dev eth0"));
    }
    lab.ip("site", &format!("address add {METADATA}/32 dev eth0"));
    // Somebody who knows of the host's inner networks.
    lab.ip("site", &format!("route add {} via {HOST}", range.net()));
    lab.link(["sandbox", UPLINK], ["host", &link]);
    lab.ip(
        "sandbox",
        &format!("address add {}/31 dev {UPLINK}", addresses.sandbox),
    );
    lab.ip(
        "sandbox",
        &format!("route add default via {}", addresses.host),
    );
    lab.ip(
        "host",
        &format!("address add {}/31 dev {link}", addresses.host),
    );
    lab.link(["sandbox", TAP], ["guest", "eth0"]);
    for address in [GATEWAY, RESOLVER] {
        lab.ip("sandbox", &format!("address add {address}/24 dev {TAP}"));
    }
    lab.ip("guest", &format!("address add {GUEST}/24 dev eth0"));
    lab.ip("guest", &format!("route add default via {GATEWAY}"));
    lab.set("host", "ip_forward");
    lab.set("host", &format!("conf/{link}/route_localnet"));
    lab.set("sandbox", "ip_forward");
    lab.rules(spec, resolver);
    let published = spec.publish.iter().map(|port| (port, addresses.sandbox));
    let rules = HostRules {
        instance,
        range,
        published: published.collect(),
    };
    lab.load("host", &rules.to_string());
    lab.serve("site", &[53, 80, 443]);
    lab.serve("host", &[22]);
    lab.serve("guest", &[80]);
    Some(lab)
}

/// Whether a connection still leads to who sends everything back; otherwise how it ended.
pub(crate) fn talks(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut said = [0; 4];
    stream.write_all(b"ping").map_err(|error| error.kind())?;
    stream.read_exact(&mut said).map_err(|error| error.kind())?;
    assert_eq!(&said, b"ping");
    Ok(())
}

/// Rules and ports, from their texts.
pub(crate) fn words<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
