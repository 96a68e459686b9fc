//! Networks of real guests, with two namespaces in the place of the host and of the internet.

use std::path::PathBuf;

use cowslip_e2e::{
    End, HOST, HOST_PRIVATE, Instance, Kernel, Lab, METADATA, OTHER, PRIVATE, SITE, Setup,
};
use cowslip_model::api::Sandbox;

/// An internet that serves a page on these ports.
pub(super) fn lab() -> Option<Lab> {
    let lab = Lab::new()?;
    lab.serve(End::Site, &[22, 80, 443]);
    lab.serve(End::Host, &[22, 80]);
    Some(lab)
}

pub(super) fn host(lab: &Lab, network: &str) -> Instance {
    let netns: PathBuf = lab.path(End::Host);
    let setup = Setup {
        network: format!("{network}\nresolvers = [\"{SITE}\"]"),
        netns: Some(netns),
        ..Setup::default()
    };
    Instance::ready(setup, Kernel::Guest)
}

/// What a guest sees of a page; nothing where it gets none.
pub(super) fn page(host: &Instance, sandbox: &str, to: impl std::fmt::Display) -> String {
    let script = format!("timeout 5 wget -q -O - http://{to}/ 2>/dev/null || true");
    host.sh(sandbox, &script).ok()
}

// covers R66
#[test]
fn a_guest_has_the_internet_and_nothing_else() {
    let Some(lab) = lab() else { return };
    let host = host(&lab, "");
    let _ = host.say("run -d --name one box -- sleep 1000").ok();
    let found = host.sandbox("one").network;
    let address = found.address.unwrap();
    assert_eq!(
        page(&host, "one", SITE),
        format!("you are {HOST}"),
        "behind the host's address"
    );
    assert_eq!(
        page(&host, "one", format!("{OTHER}:443")),
        format!("you are {HOST}")
    );
    for closed in [HOST, HOST_PRIVATE, PRIVATE, METADATA, address] {
        for port in [22, 80] {
            assert_eq!(
                page(&host, "one", format!("{closed}:{port}")),
                "",
                "{closed}:{port}"
            );
        }
    }
    // It is the guest that is told so: what is closed is refused at once.
    let script = format!("timeout 60 wget -O - http://{PRIVATE}/ 2>&1; true");
    let said = host.sh("one", &script).ok();
    assert!(said.contains("refused"), "{said}");
    // What the guest sees around itself.
    let seen = host
        .sh(
            "one",
            "ip -o -4 address show; ip route; cat /etc/resolv.conf; hostname",
        )
        .ok();
    for words in [
        "10.0.2.15/24",
        "default via 10.0.2.2",
        "nameserver 10.0.2.3",
        "one",
    ] {
        assert!(seen.contains(words), "{words} is not in {seen}");
    }
    assert_eq!(
        host.sh("one", "ping -c 1 -W 5 10.0.2.2 >/dev/null && echo there")
            .ok(),
        "there"
    );
    // IPv6 is off, and leads nowhere for a guest that turns it on.
    let six = "test ! -e /proc/net/if_inet6 || ! grep -q eth0 /proc/net/if_inet6 && echo off";
    assert_eq!(host.sh("one", six).ok(), "off");
    let gateway = "fe80::c0:57ff:fe00:2";
    let six = format!(
        "echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip -6 address add fd00::2/64 dev eth0; \
         ping -6 -c 1 -W 2 {gateway}%eth0 >/dev/null 2>&1 || echo closed"
    );
    assert_eq!(host.sh("one", &six).ok().lines().last(), Some("closed"));
    // Another sandbox is as far away as anything private.
    let _ = host
        .say("run -d --name two box -- sh -c")
        .arg("httpd -f -p 80 -h /etc")
        .ok();
    let other = host.sandbox("two").network.address.unwrap();
    assert_ne!(other, address);
    assert_eq!(page(&host, "one", format!("{other}/hostname")), "");
    assert_eq!(page(&host, "two", SITE), format!("you are {HOST}"));
}

#[test]
fn without_a_network_there_is_only_loopback() {
    let Some(lab) = lab() else { return };
    let host = host(&lab, "mode = \"none\"");
    let _ = host.say("run -d --name one box -- sleep 1000").ok();
    assert_eq!(
        host.sh("one", "ls /sys/class/net | grep eth; true").ok(),
        ""
    );
    assert_eq!(page(&host, "one", SITE), "");
    let _ = host
        .say("run -d --name two --network nat box -- sleep 1000")
        .ok();
    assert_eq!(page(&host, "two", SITE), format!("you are {HOST}"));
    host.say("create --network none --publish 8080:80 box")
        .run()
        .refused(&["--publish", "--network nat"]);
}

// covers R65 R66
#[test]
fn forks_are_connected_and_the_parents_connections_are_reset() {
    let Some(lab) = lab() else { return };
    lab.serve_silently(End::Site, 7);
    let host = host(&lab, "");
    let _ = host
        .say("run -d --name one box -- sh -c")
        .arg(format!(
            "mkfifo /tmp/in; sleep 1000 >/tmp/in & nc {SITE} 7 </tmp/in; echo over >/tmp/over; sleep 1000"
        ))
        .ok();
    let connected =
        format!("until netstat -tn | grep -q '{SITE}:7.*ESTABLISHED'; do sleep 0.1; done");
    let _ = host.sh("one", &connected).ok();
    let _ = host.say("checkpoint create one --name point").ok();
    let made = host.say("fork point --count 3 --name fork").ok();
    assert_eq!(made.lines().count(), 3);
    for number in 1..=3 {
        let fork = format!("fork-{number}");
        assert_eq!(
            page(&host, &fork, SITE),
            format!("you are {HOST}"),
            "{fork}"
        );
        let over = host
            .sh(
                &fork,
                "until [ -e /tmp/over ]; do sleep 0.1; done; cat /tmp/over",
            )
            .ok();
        assert_eq!(over, "over", "{fork}: the connection of its parent hangs");
    }
    assert_eq!(
        host.sh("one", "cat /tmp/over 2>/dev/null; true").ok(),
        "",
        "the parent's own goes on"
    );
    assert_eq!(page(&host, "one", SITE), format!("you are {HOST}"));
    // Paused and resumed it is another namespace, and the same network.
    let before = host.sandbox("one").network;
    let _ = host.say("pause one").ok();
    let _ = host.say("resume one").ok();
    assert_eq!(host.sandbox("one").network, before);
    assert_eq!(page(&host, "one", SITE), format!("you are {HOST}"));
}

#[test]
fn published_ports_lead_to_the_guest_from_everywhere() {
    let Some(lab) = lab() else { return };
    let host = host(&lab, "");
    let serve = "echo page of one >/tmp/index.html; httpd -f -p 80 -h /tmp";
    let _ = host
        .say("run -d --name one --publish 8080:80 --publish 127.0.0.1:8081:80 box -- sh -c")
        .arg(serve)
        .ok();
    let _ = host
        .sh(
            "one",
            "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.1; done",
        )
        .ok();
    let leads = |from, to, port| {
        lab.ask(from, to, port)
            .is_some_and(|text| text.contains("page of one"))
    };
    let local = std::net::Ipv4Addr::LOCALHOST;
    let everywhere = |context: &str| {
        assert!(leads(End::Host, local, 8080), "{context}: loopback");
        assert!(
            leads(End::Host, HOST, 8080),
            "{context}: the host's address"
        );
        assert!(leads(End::Site, HOST, 8080), "{context}: from outside");
        assert!(leads(End::Host, local, 8081), "{context}: loopback only");
        assert!(
            !leads(End::Site, HOST, 8081),
            "{context}: loopback only, from outside"
        );
    };
    everywhere("at first");
    assert_eq!(
        host.say("port one").ok(),
        "80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081"
    );
    host.kill_engine();
    everywhere("without an engine");
    let _ = host.say("ls").ok();
    everywhere("with the next engine");
    let _ = host.say("pause one").ok();
    assert!(
        !leads(End::Host, local, 8080),
        "a paused sandbox answers nobody"
    );
    host.say("run --publish 8080:1 box -- true")
        .run()
        .refused(&["8080:1", "sandbox \"one\""]);
    let _ = host.say("resume one").ok();
    everywhere("resumed");
    // A port that another program has is not taken from it.
    host.say("run --publish 2222:22 --publish 22:22 box -- true")
        .run()
        .refused(&["22:22", "process"]);
    let _ = host.say("rm --force one").ok();
    assert!(!leads(End::Host, local, 8080));
    let _ = host
        .say("run -d --name two --publish 8080:80 box -- sh -c")
        .arg(serve)
        .ok();
    let _ = host
        .sh(
            "two",
            "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.1; done",
        )
        .ok();
    assert!(leads(End::Host, local, 8080));
}

#[test]
fn rules_change_while_it_runs_and_are_kept() {
    let Some(lab) = lab() else { return };
    let host = host(&lab, "");
    let _ = host.say(&format!("run -d --name one --allow {SITE}:80 --allow 10.9.9.0/24 --deny {OTHER} box -- sleep 1000")).ok();
    let open = |to: String| page(&host, "one", to);
    assert!(open(format!("{SITE}:80")).starts_with("you are"));
    assert_eq!(
        open(format!("{SITE}:443")),
        "",
        "only one port of it is open"
    );
    assert_eq!(open(OTHER.to_string()), "");
    assert!(
        open(PRIVATE.to_string()).starts_with("you are"),
        "what is named is open though it is private"
    );
    let denied = host.sandbox("one").network.denied_packets.unwrap();
    assert!(denied > 0);
    let _ = host.say(&format!("network set one --deny {SITE}")).ok();
    assert_eq!(open(SITE.to_string()), "");
    assert!(open(OTHER.to_string()).starts_with("you are"));
    assert_eq!(open(PRIVATE.to_string()), "", "it is not named any more");
    host.kill_engine();
    assert_eq!(open(SITE.to_string()), "");
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("restore point --name two").ok();
    assert_eq!(
        page(&host, "two", SITE),
        "",
        "a fork is under the rules of its parent"
    );
    assert!(page(&host, "two", OTHER).starts_with("you are"));
    let shown: Sandbox = host.sandbox("two");
    assert_eq!(shown.network.deny.len(), 1);
    let _ = host.say("network set one").ok();
    assert!(open(SITE.to_string()).starts_with("you are"));
    host.say("network set one --deny nonsense/33")
        .run()
        .refused(&["nonsense/33"]);
}

// covers R67
#[test]
fn only_listed_names_resolve_and_only_their_addresses_are_open() {
    let Some(lab) = lab() else { return };
    let names = lab.names();
    names.set("site.test", &[SITE]);
    names.set("other.test", &[OTHER]);
    names.set("rebind.test", &[PRIVATE]);
    names.set("a.wild.test", &[OTHER]);
    let host = host(&lab, "");
    let rules = "--allow site.test:80 --allow *.wild.test --allow rebind.test --deny b.wild.test";
    let _ = host
        .say(&format!("run -d --name one {rules} box -- sleep 1000"))
        .ok();
    // Nothing is open before its name was asked for.
    assert_eq!(page(&host, "one", SITE), "");
    assert_eq!(page(&host, "one", "site.test"), format!("you are {HOST}"));
    assert_eq!(page(&host, "one", SITE), format!("you are {HOST}"));
    assert_eq!(
        page(&host, "one", "site.test:443"),
        "",
        "only one port of it"
    );
    // What is not listed has no address, and what has none listed is not open.
    for refused in ["other.test", "b.wild.test", "rebind.test"] {
        assert_eq!(page(&host, "one", refused), "", "{refused}");
    }
    assert_eq!(page(&host, "one", OTHER), "");
    assert_eq!(page(&host, "one", "a.wild.test"), format!("you are {HOST}"));
    let counts = host.sandbox("one").network.names.unwrap();
    assert!(
        counts.asked > counts.refused && counts.refused >= 2 && counts.rebinding >= 1,
        "{counts:?}"
    );
    assert!(host.say("network show one").ok().contains("refused, "));
    // Another name server is not reached, and neither is one by TCP.
    let asked = host
        .sh(
            "one",
            &format!("timeout 5 nslookup other.test {SITE} 2>&1; true"),
        )
        .ok();
    assert!(!asked.contains(&OTHER.to_string()), "{asked}");
    // A name that moves is followed; where it led before stays open for a while.
    names.set("site.test", &[OTHER]);
    let moved = "until nslookup site.test | grep -q 93.184.216.35; do sleep 0.2; done";
    let _ = host.sh("one", moved).ok();
    assert_eq!(page(&host, "one", "site.test"), format!("you are {HOST}"));
    // The next engine answers as well, and a fork has a resolver of its own.
    host.kill_engine();
    assert_eq!(page(&host, "one", "site.test"), format!("you are {HOST}"));
    let _ = host.say("checkpoint create one --name point").ok();
    let _ = host.say("restore point --name two").ok();
    assert_eq!(page(&host, "two", "site.test"), format!("you are {HOST}"));
    assert_eq!(page(&host, "two", "other.test"), "");
    let _ = host.say("network set two --allow other.test").ok();
    assert_eq!(page(&host, "two", "other.test"), format!("you are {HOST}"));
    assert_eq!(page(&host, "two", "site.test"), "");
}

#[test]
fn without_rules_the_hosts_own_resolver_answers() {
    let Some(lab) = lab() else { return };
    let names = lab.names();
    names.set("site.test", &[SITE]);
    let host = host(&lab, "");
    let _ = host.say("run -d --name one box -- sleep 1000").ok();
    assert_eq!(page(&host, "one", "site.test"), format!("you are {HOST}"));
    let _ = host
        .say("run -d --name two --deny site.test box -- sleep 1000")
        .ok();
    assert_eq!(page(&host, "two", "site.test"), "");
    assert_eq!(page(&host, "two", SITE), format!("you are {HOST}"));
}

#[test]
fn what_is_denied_first_is_an_event() {
    let Some(lab) = lab() else { return };
    let host = host(&lab, "");
    let _ = host.say("run -d --name one box -- sleep 1000").ok();
    let events = host.follow_events();
    for _ in 0..3 {
        assert_eq!(page(&host, "one", METADATA), "");
    }
    events.wait_for("sandbox.denied");
    let said = events.so_far();
    let denied: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("sandbox.denied"))
        .collect();
    assert_eq!(denied.len(), 1, "{said}");
    for word in ["169.254.169.254", "\"port\":80", "tcp"] {
        assert!(denied[0].contains(word), "{}", denied[0]);
    }
    assert!(host.sandbox("one").network.denied_packets.unwrap() >= 3);
    // The host's public address is refused like any other, also to who is allowed it.
    for (name, rules) in [("two", String::new()), ("three", format!("--allow {HOST}"))] {
        let _ = host
            .say(&format!("run -d --name {name} {rules} box -- sleep 1000"))
            .ok();
        assert_eq!(page(&host, name, HOST), "");
        assert!(
            host.sandbox(name).network.denied_packets.unwrap() > 0,
            "{name}"
        );
    }
}

// covers R65
#[test]
fn many_at_once_have_addresses_of_their_own() {
    let Some(lab) = lab() else { return };
    let host = host(&lab, "warm = 4");
    let _ = host.say("run -d --name first box -- sleep 1000").ok();
    let _ = host.say("checkpoint create first --name point").ok();
    let made: Vec<_> = (0..20)
        .map(|number| host.say(&format!("create --name s{number} box")).start())
        .collect();
    for one in made {
        let _ = one.wait().ok();
    }
    let _ = host.say("fork point --count 50 --name fork").ok();
    let all: Vec<Sandbox> = host.say("ls --all").json();
    let address = |one: &Sandbox| one.network.address.unwrap();
    let mut addresses: Vec<_> = all.iter().map(address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 71);
    for number in [1, 2, 25, 49, 50] {
        let fork = format!("fork-{number}");
        assert_eq!(
            page(&host, &fork, SITE),
            format!("you are {HOST}"),
            "{fork}"
        );
    }
}
