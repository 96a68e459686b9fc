//! The rules with real packets: namespaces stand for the guest, its sandbox, the host and the internet.
//!
//! ```text
//!  guest 10.0.2.15 ── tap [sandbox] uplink ── cow000000.0 [host] eth0 ── eth0 [site] as the internet
//! ```

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use cowslip_model::NetworkSpec;
use cowslip_network::{
    AddressRange, GATEWAY, GUEST, HostRules, Inside, RESOLVER, Slot, TAP, UPLINK,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A server of the internet, and what else its machine can be reached by.
const SITE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The host's address in the internet, and its private one.
const HOST: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 1);
const HOST_PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);
/// What a connection that nobody answers may take. Closed ones are most often refused at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Namespaces that go with it.
struct Lab(String);

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
    fn inside<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> T {
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

    fn load(&self, namespace: &str, rules: &str) {
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

    /// Tells whoever connects as whom it sees them.
    fn serve(&self, namespace: &str, ports: &[u16]) {
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

    /// As whom a server sees what connects from a namespace; none where it is closed.
    fn seen(&self, from: &str, to: Ipv4Addr, port: u16) -> Option<String> {
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
fn lab(name: &str, spec: &NetworkSpec, resolver: Option<Ipv4Addr>) -> Option<Lab> {
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
    let inside = Inside {
        spec,
        addresses,
        range,
        resolver,
    };
    lab.load("sandbox", &inside.to_string());
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

#[test]
fn without_a_word_the_internet_is_open_and_nothing_else() {
    let Some(lab) = lab("nat", &NetworkSpec::default(), Some(PRIVATE)) else {
        return;
    };
    for port in [80, 443] {
        assert_eq!(lab.seen("guest", SITE, port), Some(HOST.to_string()));
    }
    for address in [PRIVATE, METADATA] {
        assert_eq!(lab.seen("guest", address, 80), None, "{address}");
    }
    let link = AddressRange::default().addresses(Slot(300)).unwrap();
    for address in [HOST, HOST_PRIVATE, GATEWAY, link.host, link.sandbox] {
        assert_eq!(lab.seen("guest", address, 22), None, "{address}");
    }
    // Names are asked for at one place, which leads to the host's own resolver, wherever that is.
    assert_eq!(
        lab.seen("guest", RESOLVER, 53),
        Some(HOST_PRIVATE.to_string())
    );
    assert_eq!(lab.seen("guest", RESOLVER, 80), None);
    // Nobody outside gets in, not even who knows the way.
    for port in [80, 22] {
        assert_eq!(lab.seen("site", link.sandbox, port), None);
    }
}

#[test]
fn only_what_is_allowed_is_open_and_what_is_published_leads_in() {
    let words = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let spec = NetworkSpec {
        allow: words(&["0.0.0.0/0:443", "10.9.9.9:80"]),
        deny: words(&["10.9.9.9:443"]),
        publish: ["8080:80", "127.0.0.1:8081:80"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect(),
        ..NetworkSpec::default()
    };
    let Some(lab) = lab("list", &spec, None) else {
        return;
    };
    assert_eq!(lab.seen("guest", SITE, 443), Some(HOST.to_string()));
    assert_eq!(lab.seen("guest", SITE, 80), None);
    assert_eq!(
        lab.seen("guest", PRIVATE, 80),
        Some(HOST_PRIVATE.to_string())
    );
    assert_eq!(lab.seen("guest", PRIVATE, 443), None);
    // A wide network does not open what is closed.
    assert_eq!(lab.seen("guest", METADATA, 443), None);
    assert_eq!(lab.seen("guest", RESOLVER, 53), None);

    let link = AddressRange::default().addresses(Slot(300)).unwrap();
    let local = Ipv4Addr::LOCALHOST;
    assert_eq!(lab.seen("host", local, 8080), Some(link.host.to_string()));
    assert_eq!(lab.seen("host", local, 8081), Some(link.host.to_string()));
    assert_eq!(lab.seen("host", HOST, 8080), Some(HOST.to_string()));
    // From outside the guest sees who it is.
    assert_eq!(lab.seen("site", HOST, 8080), Some(SITE.to_string()));
    assert_eq!(lab.seen("site", HOST, 8081), None);
    assert_eq!(lab.seen("site", link.sandbox, 22), None);
    assert_eq!(lab.seen("guest", HOST, 8080), None);
}
