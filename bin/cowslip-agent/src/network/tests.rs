//! The guest's network with a real kernel: namespaces stand for the guest and for what is around it.
//!
//! ```text
//!  [guest] eth0 10.0.2.15 ──── gateway 10.0.2.2 [around]
//! ```

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;

const MAC: [u8; 6] = [0x02, 0xc0, 0x57, 0x00, 0x00, 0x0f];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

fn asked() -> pb::Network {
    pb::Network {
        mac: MAC.to_vec(),
        address: 0x0a00_020f,
        prefix: 24,
        gateway: GATEWAY.into(),
        resolvers: vec![0x0a00_0203],
    }
}

fn network() -> Network {
    asked().try_into().unwrap()
}

#[test]
fn what_cannot_be_a_network_is_refused() {
    let refused = |change: fn(&mut pb::Network)| {
        let mut network = asked();
        change(&mut network);
        Network::try_from(network).unwrap_err().to_string()
    };
    assert!(refused(|n| n.prefix = 33).contains("prefix"));
    assert!(refused(|n| n.prefix = 256 + 24).contains("prefix"));
    assert!(refused(|n| n.mac.truncate(5)).contains("hardware address"));
    assert!(refused(|n| n.mac.push(0)).contains("hardware address"));
    assert!(refused(|n| n.address = 0).contains("no address"));
    assert_eq!(network().address, GUEST);
}

/// Namespaces that go with it.
struct Lab {
    name: String,
    etc: tempfile::TempDir,
}

impl Lab {
    fn new(name: &str) -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        if !root || Command::new("ip").arg("-V").output().is_err() {
            eprintln!("SKIPPED: namespaces need root and ip");
            return None;
        }
        let lab = Self {
            name: format!("cowslip-agent-{}-{name}", std::process::id()),
            etc: tempfile::tempdir().unwrap(),
        };
        for namespace in ["guest", "around"] {
            ip(&["netns", "add", &lab.namespace(namespace)]);
        }
        lab.inside("guest", || interface::loopback_up().unwrap());
        Some(lab)
    }

    fn namespace(&self, which: &str) -> String {
        format!("{}-{which}", self.name)
    }

    fn ip(&self, namespace: &str, words: &str) -> String {
        let name = self.namespace(namespace);
        let words = words.split_whitespace();
        ip(&["-n", &name].into_iter().chain(words).collect::<Vec<_>>())
    }

    /// The guest's interface, and what it leads to.
    fn plug(&self) {
        let around = self.namespace("around");
        let plug = "link add name eth0 address 02:c0:57:00:00:0f type veth peer name gateway netns";
        self.ip("guest", &format!("{plug} {around}"));
        self.ip("around", "address add 10.0.2.2/24 dev gateway");
        self.ip("around", "link set dev gateway up");
    }

    /// Does something in a namespace.
    fn inside<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.namespace(namespace));
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

    fn set_up(&self, patience: Duration) -> Result<(), NetworkError> {
        self.inside("guest", || network().set_up(self.etc.path(), patience))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in ["guest", "around"] {
            let name = self.namespace(namespace);
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

fn ip(words: &[&str]) -> String {
    let output = Command::new("ip").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_interface_is_up_with_its_address_and_a_way_out_however_often_it_is_asked_for() {
    let Some(lab) = Lab::new("up") else { return };
    lab.plug();
    for _ in 0..2 {
        lab.set_up(Duration::ZERO).unwrap();
        let link = lab.ip("guest", "link show dev eth0");
        assert!(link.contains("state UP"), "{link}");
        let addresses = lab.ip("guest", "-o address show dev eth0");
        assert!(addresses.contains("inet 10.0.2.15/24"), "{addresses}");
        assert_eq!(addresses.lines().count(), 1, "no IPv6: {addresses}");
        let routes = lab.ip("guest", "route show default");
        assert_eq!(routes.trim(), "default via 10.0.2.2 dev eth0");
    }
    let resolvers = fs::read_to_string(lab.etc.path().join("resolv.conf")).unwrap();
    assert_eq!(resolvers, "nameserver 10.0.2.3\n");
}

#[test]
fn an_interface_that_comes_later_is_waited_for() {
    let Some(lab) = Lab::new("later") else { return };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lab.set_up(Duration::from_secs(60)));
        lab.plug();
        waiting.join().unwrap().unwrap();
    });
    let addresses = lab.ip("guest", "-o address show dev eth0");
    assert!(addresses.contains("inet 10.0.2.15/24"), "{addresses}");
}

#[test]
fn an_interface_that_does_not_come_is_named() {
    let Some(lab) = Lab::new("none") else { return };
    let error = lab.set_up(Duration::from_millis(1)).unwrap_err();
    assert!(error.to_string().contains("02:c0:57:00:00:0f"), "{error}");
    assert!(matches!(error, NetworkError::Missing { mac: MAC }));
}

/// Two ends of a connection.
fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (stream, listener.accept().unwrap().0)
}

fn talks((mut one, mut other): (TcpStream, TcpStream)) {
    for _ in 0..2 {
        one.write_all(b"alive").unwrap();
        let mut heard = [0; 5];
        other.read_exact(&mut heard).unwrap();
        (one, other) = (other, one);
    }
}

#[test]
fn connections_to_elsewhere_are_reset_and_others_live() {
    let Some(lab) = Lab::new("reset") else { return };
    lab.plug();
    lab.set_up(Duration::ZERO).unwrap();
    let listen = |address: &str| TcpListener::bind(address).unwrap();
    let theirs = lab.inside("around", || listen("0.0.0.0:70"));
    let to_them = SocketAddr::from((GATEWAY, 70));
    let mut outward = lab.inside("guest", || TcpStream::connect(to_them).unwrap());
    let ours = lab.inside("guest", || listen("[::]:80"));
    let waiting = lab.inside("guest", || listen("10.0.2.15:81"));
    let to_us = SocketAddr::from((GUEST, 80));
    let peer = lab.inside("around", || TcpStream::connect(to_us).unwrap());
    let mut inward = ours.accept().unwrap().0;
    let within = lab.inside("guest", || {
        let own = TcpStream::connect(to_us).unwrap();
        [
            connect(&listen("127.0.0.2:90")),
            connect(&listen("[::1]:90")),
            (own, ours.accept().unwrap().0),
        ]
    });

    assert_eq!(lab.inside("guest", || connections::reset().unwrap()), 2);
    for stream in [&mut outward, &mut inward] {
        let error = stream.read(&mut [0]).unwrap_err();
        let told = [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset];
        assert!(told.contains(&error.kind()), "{error}");
    }
    within.into_iter().for_each(talks);
    // Whoever listened still does.
    for listener in [&ours, &waiting] {
        let port = listener.local_addr().unwrap().port();
        let again = lab.inside("around", || TcpStream::connect((GUEST, port)).unwrap());
        talks((again, listener.accept().unwrap().0));
    }
    drop((peer, theirs));
}
