//! Other firewalls, with real tables in namespaces of their own.

use std::process::Command;

use super::*;
use crate::netns::{DroppingChain, Firewall, forwarding_is_dropped, try_out};

const LINKS: &str = "cow012345.";

fn run(words: &str) -> bool {
    let mut words = words.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output();
    output.is_ok_and(|output| output.status.success())
}

/// The test VM has no iptables, and newer kernels have no tables of iptables-legacy.
fn is_there(program: &str) -> bool {
    let is_there = run(&format!("{program} -S"));
    if !is_there {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("SKIPPED: there is no {program} here");
        }
    }
    is_there
}

/// Does something in a namespace that goes with it.
fn alone(work: impl FnOnce() + Send) {
    let inside = || {
        work();
        Ok(())
    };
    try_out(inside).unwrap();
}

fn dropping() -> Vec<DroppingChain> {
    forwarding_is_dropped(LINKS).unwrap()
}

/// What Docker makes, and what its users do to it.
fn is_found_until_it_lets_links_pass(program: &str, firewall: Firewall) {
    let must = |words: &str| assert!(run(&format!("{program} {words}")), "{words}");
    let chain = |own_rules: &str| {
        vec![DroppingChain {
            firewall: firewall.clone(),
            name: "FORWARD".to_owned(),
            own_rules: own_rules.to_owned(),
        }]
    };
    assert_eq!(dropping(), []);
    must("-A FORWARD -i eth7 -j ACCEPT");
    assert_eq!(dropping(), []);
    must("-P FORWARD DROP");
    assert_eq!(dropping(), chain("FORWARD"));
    must("-N DOCKER-FIRST");
    must("-N DOCKER-USER");
    must("-A DOCKER-USER -s 10.0.0.0/8 -m comment --comment other -j ACCEPT");
    must("-A DOCKER-USER -i cow -o eth7 -j ACCEPT");
    must("-A DOCKER-USER -j RETURN");
    must("-A FORWARD -i eth7 -j DOCKER-USER");
    assert_eq!(dropping(), chain("FORWARD"), "not all come there");
    must("-I FORWARD -j DOCKER-USER");
    assert_eq!(dropping(), chain("DOCKER-USER"));
    for (way, left) in [("-i", chain("DOCKER-USER")), ("-o", Vec::new())] {
        must(&format!("-I DOCKER-USER {way} cow+ -j ACCEPT"));
        assert_eq!(dropping(), left, "{way}");
    }
    must("-F DOCKER-USER");
    for narrow in ["-s 10.0.0.0/8", "-p tcp", "-o eth7", "-m mark --mark 1"] {
        must(&format!("-A DOCKER-USER -i cow+ {narrow} -j ACCEPT"));
    }
    for other in ["cow", "cow1+", "cow012345.1"] {
        must(&format!("-A DOCKER-USER -i {other} -j ACCEPT"));
    }
    must("-A DOCKER-USER -i cow+ -j DROP");
    must("-A DOCKER-USER ! -i cow+ -j ACCEPT");
    must("-A FORWARD -o cow0+ -j ACCEPT");
    assert_eq!(dropping(), chain("DOCKER-USER"), "one way only");
    must("-A FORWARD -i cow012345.+ -j ACCEPT");
    assert_eq!(dropping(), []);
    must("-P FORWARD ACCEPT");
    must("-F FORWARD");
    assert_eq!(dropping(), []);
}

#[test]
fn rules_of_iptables_nft_are_read() {
    if networks::missing() {
        return;
    }
    alone(|| {
        if is_there("iptables-nft") {
            is_found_until_it_lets_links_pass("iptables-nft", Firewall::IptablesNft);
        }
    });
}

#[test]
fn rules_of_iptables_legacy_are_read() {
    if networks::missing() {
        return;
    }
    alone(|| {
        // Who only looks makes no tables.
        let tables = || std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
        assert_eq!(dropping(), []);
        assert_eq!(tables().unwrap_or_default(), "");
        if is_there("iptables-legacy") {
            is_found_until_it_lets_links_pass("iptables-legacy", Firewall::IptablesLegacy);
        }
    });
}
