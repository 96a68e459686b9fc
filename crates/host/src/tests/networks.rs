//! Networks of sandboxes, with real namespaces.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use super::*;
use crate::Networks;
use crate::netns::{Netns, NetnsSpec, TapSpec};

/// Lets nothing through, and counts it.
const RULES: &str = "table inet t\ndelete table inet t\ntable inet t {\n\
    chain forward {\n type filter hook forward priority filter; policy drop; counter\n }\n}\n";

/// Where tests of networks cannot run; says so.
pub(super) fn missing() -> bool {
    let root = crate::process::is_root();
    let programs = ["nft", "ip"].iter().all(|program| {
        let asked = Command::new(program).arg("-V").output();
        asked.is_ok()
    });
    let missing = !root || !programs || !std::path::Path::new("/dev/net/tun").exists();
    if missing {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("SKIPPED: networks need root, nft, ip and /dev/net/tun");
        }
    }
    missing
}

/// A network whose link has a name that no other test has.
pub(super) fn spec(bench: &Bench, name: &str) -> NetnsSpec {
    let instance = bench.ledger.instance();
    // Tests are run at once, in one namespace.
    let third = name.as_bytes()[0];
    let text = instance.to_string();
    NetnsSpec {
        path: bench.layout.networks().join(name),
        link: format!("t{}.{name}", &text[text.len() - 8..]),
        mark: format!("cowslip-{instance}-{name}"),
        host: Ipv4Addr::new(10, 201, third, 254),
        sandbox: Ipv4Addr::new(10, 201, third, 255),
        uplink: "up".to_owned(),
        tap: TapSpec {
            name: "tap".to_owned(),
            addresses: vec![Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 3)],
            prefix: 24,
            mac: [2, 0, 0, 0, 0, 2],
            guest: Ipv4Addr::new(10, 0, 2, 15),
            guest_mac: [2, 0, 0, 0, 0, 15],
            owner: Some((4242, 4243)),
        },
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn inside(spec: &NetnsSpec, command: &[&str]) -> String {
    let name = format!("--net={}", spec.path.display());
    let output = Command::new("nsenter")
        .arg(name)
        .args(command)
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The links of this test on the host.
fn links(spec: &NetnsSpec) -> Vec<String> {
    let (prefix, _) = spec.link.split_once('.').unwrap();
    let names = fs::read_dir("/sys/class/net").unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

#[test]
fn a_network_is_made_whole_and_goes_whole() {
    if missing() {
        return;
    }
    let bench = Bench::new();
    let spec = spec(&bench, "a");
    let held = bench
        .host
        .make_netns(bench.reserve::<Netns>(spec.clone()), RULES)
        .unwrap();
    let row = bench.row(held);
    assert_eq!(bench.probe(&row), Presence::Present);

    let outside = ip(&["-d", "address", "show", "dev", &spec.link]);
    assert!(outside.contains("inet 10.201.97.254/31"), "{outside}");
    assert!(
        outside.contains(&spec.mark) && outside.contains("UP"),
        "{outside}"
    );
    let tap = inside(&spec, &["ip", "-d", "address", "show", "dev", "tap"]);
    for word in [
        "inet 10.0.2.2/24",
        "inet 10.0.2.3/24",
        "02:00:00:00:00:02",
        "user 4242",
        "group 4243",
        "vnet_hdr on",
        "persist on",
    ] {
        assert!(tap.contains(word), "{word}: {tap}");
    }
    let neighbours = inside(&spec, &["ip", "neighbour"]);
    assert!(neighbours.contains("10.0.2.15 dev tap lladdr 02:00:00:00:00:0f PERMANENT"));
    let routes = inside(&spec, &["ip", "route"]);
    assert!(
        routes.contains("default via 10.201.97.254 dev up"),
        "{routes}"
    );
    let forward = inside(&spec, &["cat", "/proc/sys/net/ipv4/ip_forward"]);
    assert_eq!(forward.trim(), "1");
    assert!(inside(&spec, &["ip", "-6", "address"]).is_empty());
    // The two ends reach each other.
    let _ = inside(&spec, &["ip", "route", "get", "192.0.2.1"]);
    let ping = Command::new("ping")
        .args(["-c1", "-W2", "10.201.97.255"])
        .output();
    assert!(ping.is_err() || ping.unwrap().status.success());

    let listed = inside(&spec, &["nft", "list", "ruleset"]);
    assert!(listed.contains("table inet t "), "{listed}");
    let other = RULES.replace("counter", "counter accept");
    bench.host.reload_netns(&spec, &other).unwrap();
    let listed = inside(&spec, &["nft", "list", "ruleset"]);
    assert!(listed.contains("accept") && listed.matches("table").count() == 1);
    // What is refused changes nothing.
    let error = bench
        .host
        .reload_netns(&spec, "table inet t {")
        .unwrap_err();
    assert!(matches!(error, HostError::Rules { .. }), "{error}");
    assert_eq!(inside(&spec, &["nft", "list", "ruleset"]), listed);

    bench.release_twice(&row);
    assert!(links(&spec).is_empty());
    assert!(!spec.path.exists());
    // Its names are free at once.
    let held = bench.host.make_netns(bench.reserve::<Netns>(spec), RULES);
    bench.release_twice(&bench.row(held.unwrap()));
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    // covers R65
    if missing() {
        return;
    }
    let bench = Bench::new();
    let spec = spec(&bench, "b");
    let make = |spec: &NetnsSpec, rules| {
        let slot = bench.reserve::<Netns>(spec.clone());
        bench
            .host
            .make_netns(slot, rules)
            .map(|held| bench.row(held))
    };
    let left = |spec: &NetnsSpec| spec.path.exists() || !links(spec).is_empty();
    let error = make(&spec, "no rules").unwrap_err();
    assert!(matches!(error, HostError::Rules { .. }), "{error}");
    assert!(!left(&spec));
    let mut long = spec.clone();
    long.tap.name = "a-name-that-is-too-long".to_owned();
    assert!(matches!(
        make(&long, RULES),
        Err(HostError::Interface { .. })
    ));
    assert!(!left(&spec));
    let mut foreign = spec.clone();
    foreign.mark = "cowslip-00000000000000ff-b".to_owned();
    assert!(matches!(
        make(&foreign, RULES),
        Err(HostError::Outside { .. })
    ));

    // One that is there is not taken, and not taken away.
    let row = make(&spec, RULES).unwrap();
    let mut second = spec.clone();
    second.path = bench.layout.networks().join("c");
    assert!(matches!(
        make(&second, RULES),
        Err(HostError::Interface { .. })
    ));
    assert_eq!(bench.probe(&row), Presence::Present);
    let mut third = spec.clone();
    third.link += "3";
    assert!(matches!(make(&third, RULES), Err(HostError::Path { .. })));
    assert_eq!(bench.probe(&row), Presence::Present);
    let _ = inside(&spec, &["ip", "link", "show", "dev", "tap"]);
    bench.release_twice(&row);
    assert!(!left(&spec));
}

#[test]
fn a_network_without_a_row_is_found_and_another_programs_link_is_left_alone() {
    if missing() {
        return;
    }
    let bench = Bench::new();
    let spec = spec(&bench, "d");
    let held = bench
        .host
        .make_netns(bench.reserve::<Netns>(spec.clone()), RULES);
    let row = bench.row(held.unwrap());
    assert!(
        bench
            .host
            .strays(std::slice::from_ref(&row))
            .unwrap()
            .is_empty()
    );
    let strays = bench.host.strays(&[]).unwrap();
    let kinds: Vec<_> = strays.iter().map(|stray| stray.kind.as_str()).collect();
    assert_eq!(kinds, ["netns", "netns"], "the name, and the link");
    for stray in strays {
        bench.release_twice(&stray.row.unwrap());
    }
    assert!(links(&spec).is_empty());
    assert_eq!(bench.probe(&row), Presence::Absent);

    let peer = format!("{}2", spec.link);
    ip(&[
        "link", "add", &spec.link, "type", "veth", "peer", "name", &peer,
    ]);
    bench.assert_foreign(&row);
    ip(&["link", "set", &spec.link, "alias", "somebody else's"]);
    bench.assert_foreign(&row);
    ip(&["link", "delete", &spec.link]);
}

// covers R64
#[test]
fn an_address_that_the_host_has_is_refused() {
    if missing() {
        return;
    }
    let bench = Bench::new();
    let spec = spec(&bench, "x");
    let held = bench
        .host
        .make_netns(bench.reserve::<Netns>(spec.clone()), RULES);
    let row = bench.row(held.unwrap());
    let other = NetnsSpec {
        host: spec.host,
        sandbox: spec.sandbox,
        ..self::spec(&bench, "y")
    };
    let error = bench
        .host
        .make_netns(bench.reserve::<Netns>(other.clone()), RULES)
        .err()
        .unwrap();
    assert!(error.to_string().contains("network.range"), "{error}");
    let there = |spec: &NetnsSpec| links(spec).iter().any(|line| line.contains(&spec.link));
    assert!(there(&spec) && !there(&other) && !other.path.exists());
    bench.release_twice(&row);
}

// covers R65
#[test]
fn fifty_at_once_are_made_and_go() {
    if missing() {
        return;
    }
    let bench = Bench::new();
    let specs: Vec<NetnsSpec> = (0..50_u8)
        .map(|number| NetnsSpec {
            host: Ipv4Addr::new(10, 202, 7, number * 2),
            sandbox: Ipv4Addr::new(10, 202, 7, number * 2 + 1),
            ..spec(&bench, &format!("{number:x}"))
        })
        .collect();
    std::thread::scope(|scope| {
        for spec in &specs {
            let bench = &bench;
            scope.spawn(move || {
                let slot = bench.reserve::<Netns>(spec.clone());
                bench.host.make_netns(slot, RULES).unwrap().settle();
            });
        }
    });
    let rows: Vec<_> = bench.ledger.read(|tx| tx.handles()).unwrap();
    let made = rows.iter().filter(|row| row.kind == Netns::KIND);
    assert_eq!(made.clone().count(), 50);
    assert_eq!(links(&specs[0]).len(), 50);
    std::thread::scope(|scope| {
        for row in made {
            scope.spawn(|| bench.host.release(row).unwrap());
        }
    });
    assert_eq!(links(&specs[0]), [""; 0]);
    assert!(specs.iter().all(|spec| !spec.path.exists()));
}
