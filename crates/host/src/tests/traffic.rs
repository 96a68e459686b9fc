//! What is asked of a network that is there, with real packets: between its namespace and the host, on their link.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cowslip_ledger::HandleRow;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::networks::{inside, missing, spec};
use super::*;
use crate::Networks;
use crate::netns::{Count, DeniedPacket, Element, Netns, NetnsSpec, TableSocket};

/// What a test has of a network. It goes with the test.
struct Network {
    bench: Bench,
    spec: NetnsSpec,
    row: HandleRow,
}

impl Network {
    /// One with a table `t` of these words; none where there can be none.
    fn new(name: &str, words: &str) -> Option<Self> {
        if missing() {
            return None;
        }
        let bench = Bench::new();
        let spec = spec(&bench, name);
        let slot = bench.reserve::<Netns>(spec.clone());
        let held = bench.host.make_netns(slot, &table(words)).unwrap();
        let row = bench.row(held);
        Some(Self { bench, spec, row })
    }

    fn host(&self) -> &LinuxHost {
        &self.bench.host
    }

    /// Does something in the namespace.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.spec.path).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// A program that tells in JSON.
    fn told(&self, command: &[&str]) -> Value {
        serde_json::from_str(&inside(&self.spec, command)).unwrap()
    }

    fn send(&self, port: u16, packets: usize) {
        let to = (self.spec.host, port);
        let socket = self.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        for _ in 0..packets {
            // Who sends what is dropped on the same machine is told.
            let _ = socket.send_to(&[0; 10], to);
        }
    }

    /// A connection from the namespace to the host.
    fn connect(&self) -> io::Result<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind((self.spec.host, 0))?;
        let address = listener.local_addr()?;
        let near = self.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        Ok((near, far))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.bench.host.release(&self.row);
    }
}

fn table(words: &str) -> String {
    format!("table inet t\ndelete table inet t\ntable inet t {{\n{words}\n}}\n")
}

fn element(set: &str, last: u8, seconds: u64) -> Element {
    Element {
        set: set.to_owned(),
        address: Ipv4Addr::new(192, 0, 2, last),
        lasts: Duration::from_secs(seconds),
        fresh: false,
    }
}

#[test]
fn addresses_are_in_sets_for_as_long_as_was_said_last() {
    let sets = "set name0 { type ipv4_addr; flags timeout; }\n\
                set name1 { type ipv4_addr; flags timeout; }";
    let Some(network) = Network::new("e", sets) else {
        return;
    };
    let mut kept = TableSocket::default();
    let mut open = |elements: &[Element]| {
        let host = network.host();
        host.open_addresses(&network.spec, "t", elements, &mut kept)
    };
    // Addresses, what they were given, and whether most of that is left.
    let listed = |set: &str| {
        let told = network.told(&["nft", "-j", "list", "set", "inet", "t", set]);
        let elements = told["nftables"][1]["set"]["elem"].as_array().cloned();
        let mut listed: Vec<(String, u64, bool)> = elements
            .unwrap_or_default()
            .iter()
            .map(|element| {
                let number = |word| element["elem"][word].as_u64().unwrap();
                let lasts = number("timeout");
                let value = element["elem"]["val"].as_str().unwrap().to_owned();
                (value, lasts, number("expires") > lasts / 2)
            })
            .collect();
        listed.sort_unstable();
        listed
    };
    let one = |last: u8, lasts| (format!("192.0.2.{last}"), lasts, true);

    open(&[]).unwrap();
    open(&[element("name0", 1, 100), element("name1", 2, 5000)]).unwrap();
    assert_eq!(listed("name0"), [one(1, 100)]);
    assert_eq!(listed("name1"), [one(2, 5000)]);
    // Longer, shorter, new, and two words on one.
    open(&[
        element("name0", 1, 1000),
        element("name1", 2, 500),
        element("name0", 3, 600),
        element("name0", 3, 700),
    ])
    .unwrap();
    assert_eq!(listed("name0"), [one(1, 1000), one(3, 700)]);
    assert_eq!(listed("name1"), [one(2, 500)]);
    // All or nothing.
    let before = listed("name0");
    let error = open(&[element("name0", 4, 100), element("name7", 4, 100)]).unwrap_err();
    assert!(matches!(error, HostError::Path { .. }), "{error}");
    assert_eq!(listed("name0"), before);

    let many = |lasts| {
        let many = (0..3000_u16).map(|index| Element {
            address: Ipv4Addr::from(0x0b00_0000 + u32::from(index)),
            ..element("name1", 0, lasts)
        });
        many.collect::<Vec<_>>()
    };
    for lasts in [1000, 2000] {
        open(&many(lasts)).unwrap();
        let listed = listed("name1");
        assert_eq!(listed.len(), 3001);
        assert!(listed[..3000].iter().all(|one| one.1 == lasts && one.2));
    }
    // Nothing stays for ever.
    open(&[element("name0", 1, 0)]).unwrap();
    let begun = Instant::now();
    while listed("name0").len() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    let mut other = network.spec.clone();
    other.mark = "cowslip-00000000000000ff-e".to_owned();
    let refused = network
        .host()
        .open_addresses(&other, "t", &[], &mut TableSocket::default());
    assert!(matches!(refused, Err(HostError::Outside { .. })));
}

const COUNTED: &str = "counter denied { }\n\
    chain output {\n type filter hook output priority filter; policy accept;\n\
    udp dport 9 counter name denied log group 1 drop\n }";

#[test]
fn what_was_denied_is_counted() {
    let Some(network) = Network::new("f", COUNTED) else {
        return;
    };
    let count = |counter| network.host().count(&network.spec, "t", counter);
    assert_eq!(count("denied").unwrap(), Count::default());
    network.send(9, 3);
    network.send(10, 1);
    let three = Count {
        packets: 3,
        bytes: 3 * (20 + 8 + 10),
    };
    assert_eq!(count("denied").unwrap(), three);
    assert!(count("allowed").is_err());
}

#[tokio::test]
async fn what_was_denied_is_told() {
    let Some(network) = Network::new("g", COUNTED) else {
        return;
    };
    assert!(network.host().has_packet_log().unwrap());
    let listen = || network.host().denied_log(&network.spec, 1);
    let mut log = listen().unwrap();
    assert!(listen().is_err(), "it has one listener");
    network.send(10, 1);
    network.send(9, 2);
    for _ in 0..2 {
        let packet = tokio::time::timeout(Duration::from_secs(30), log.next());
        let denied = DeniedPacket {
            protocol: 17,
            source: network.spec.sandbox,
            destination: network.spec.host,
            port: Some(9),
        };
        assert_eq!(packet.await.unwrap().unwrap(), denied);
    }
    drop(log);
    listen().unwrap();
    // The trial of a rule that logs is over, and left nothing.
    let tables = std::process::Command::new("nft")
        .args(["list", "tables"])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&tables.stdout).contains("probe"));
}

#[test]
fn a_network_is_no_faster_than_it_may_be() {
    const RATE: u64 = 4 << 20;
    const BURST: u64 = 32 << 10;
    let Some(network) = Network::new("i", "") else {
        return;
    };
    let shape = |rate| network.host().shape_netns(&network.spec, rate).unwrap();
    // Rate, burst and latency in microseconds of each interface that has a bucket.
    let shaped = || {
        let told = network.told(&["tc", "-j", "qdisc", "show"]);
        let told = told.as_array().unwrap().clone();
        let buckets = told.iter().filter(|one| one["kind"] == "tbf");
        buckets
            .map(|one| {
                let number = |word| one["options"][word].as_u64().unwrap();
                let name = one["dev"].as_str().unwrap().to_owned();
                (name, number("rate"), number("burst"), number("lat"))
            })
            .collect::<Vec<_>>()
    };
    shape(None);
    assert!(shaped().is_empty());
    for rate in [100 << 20, 8 << 30, RATE] {
        shape(Some(rate));
        let shaped = shaped();
        let names: Vec<&str> = shaped.iter().map(|one| one.0.as_str()).collect();
        assert_eq!(names, ["tap", "up"]);
        for (_, is, burst, latency) in shaped {
            assert_eq!((is, latency), (rate, 50_000));
            // The kernel keeps it as a time.
            let wanted = BURST.max(rate / 250);
            assert!(burst.abs_diff(wanted) <= wanted / 1000, "{burst}");
        }
    }

    let (mut near, mut far) = network.connect().unwrap();
    let begun = Instant::now();
    let sender = std::thread::spawn(move || {
        let data = vec![0; usize::try_from(RATE).unwrap()];
        near.write_all(&data)
    });
    let received = io::copy(&mut far, &mut io::sink()).unwrap();
    let elapsed = begun.elapsed();
    sender.join().unwrap().unwrap();
    assert_eq!(received, RATE);
    let told = network.told(&["tc", "-s", "-j", "qdisc", "show", "dev", "up"]);
    let number = |word: &str| told[0][word].as_u64().unwrap();
    assert!(
        number("bytes") >= RATE && number("overlimits") > 0,
        "{told}"
    );
    let least = Duration::from_secs_f64((RATE - BURST) as f64 / (1.5 * RATE as f64));
    assert!(elapsed > least, "{elapsed:?}");

    for _ in 0..2 {
        shape(None);
        assert!(shaped().is_empty());
    }
}
