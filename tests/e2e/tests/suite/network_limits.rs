//! Limits of guests' networks, in QEMU and in Firecracker alike (`COWSLIP_TEST_VMM`).

use std::time::Instant;

use cowslip_e2e::{End, SITE};

use super::network::{host, lab};

#[test]
fn a_guest_is_no_faster_than_it_may_be() {
    const LENGTH: usize = 4 << 20;
    /// A second's passes at once, and monitors are not exact: 4 % too fast was seen.
    const LEAST: f64 = 2.7;
    let Some(lab) = lab() else { return };
    lab.serve_bytes(End::Site, 8000, LENGTH);
    let host = host(&lab, "");
    let limit = "--network-bandwidth 1m";
    let _ = host
        .say(&format!("run -d --name one {limit} box -- sleep 1000"))
        .ok();
    let begun = Instant::now();
    let script = format!("wget -q -O - http://{SITE}:8000/ | wc -c");
    assert_eq!(host.sh("one", &script).ok(), LENGTH.to_string());
    let took = begun.elapsed().as_secs_f64();
    assert!(took > LEAST, "{took} s for 4 MiB with 1 MiB a second");
    host.say("create --network-bandwidth 10 box")
        .run()
        .refused(&["16K"]);
}

#[test]
fn a_guest_sends_no_more_packets_than_it_may() {
    const RATE: f64 = 20.0;
    const SENT: u32 = 400;
    let Some(lab) = lab() else { return };
    let host = host(&lab, "");
    let limit = format!("--network-packets {RATE}");
    for line in [
        "run -d --name free box -- sleep 1000".to_owned(),
        format!("run -d --name bound {limit} box -- sleep 1000"),
    ] {
        let _ = host.say(&line).ok();
    }
    let answered = |sandbox: &str| {
        let begun = Instant::now();
        let script = format!("ping -q -c {SENT} -i 0.005 -W 1 {SITE}; true");
        let said = host.sh(sandbox, &script).ok();
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words
            .windows(3)
            .position(|three| three[1..] == ["packets", "received,"]);
        let count: u32 = words[at.expect(&said)].parse().unwrap();
        (count, begun.elapsed().as_secs_f64())
    };
    let (free, _) = answered("free");
    assert!(free > SENT / 2, "{free} of {SENT} without a limit");
    let (bound, took) = answered("bound");
    // A second's at once in Firecracker, ten in QEMU.
    let most = RATE * (took + 1.0) + 10.0;
    assert!(bound > 0, "the limit lets nothing pass");
    assert!(f64::from(bound) <= most, "{bound} in {took} s");
    let limited = |name: &str| host.sandbox(name).network.limited_packets;
    assert_eq!(limited("free"), None);
    // Firecracker keeps most of what is too many back before the rules see it.
    let in_rules = std::env::var("COWSLIP_TEST_VMM").as_deref() != Ok("firecracker");
    assert!(limited("bound").unwrap() > 0 || !in_rules);
}
