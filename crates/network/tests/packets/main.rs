//! The rules with real packets: namespaces stand for the guest, its sandbox, the host and the internet.
//!
//! ```text
//!  guest 10.0.2.15 ── tap [sandbox] uplink ── cow000000.0 [host] eth0 ── eth0 [site] as the internet
//! ```

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod connections;
mod lab;
mod limits;

use std::net::Ipv4Addr;

use cowslip_model::NetworkSpec;
use cowslip_network::{AddressRange, DENIED, GATEWAY, RESOLVER, Slot};

use lab::{HOST, HOST_PRIVATE, METADATA, PRIVATE, SITE, lab, words};

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
    // Its public addresses are refused where all else is, and so counted.
    let before = lab.counted(DENIED);
    assert_eq!(lab.seen("guest", HOST, 22), None);
    assert!(lab.counted(DENIED) > before);
    // Names are asked for at one place, which leads to the host's own resolver, wherever that is.
    assert_eq!(
        lab.seen("guest", RESOLVER, 53),
        Some(HOST_PRIVATE.to_string())
    );
    assert_eq!(lab.seen("guest", RESOLVER, 80), None);
    // What runs beside the guest in its namespace is held to more, not to less: a monitor that was taken over.
    assert_eq!(lab.seen("sandbox", SITE, 80), None);
    // Nobody outside gets in, not even who knows the way.
    for port in [80, 22] {
        assert_eq!(lab.seen("site", link.sandbox, port), None);
    }
}

#[test]
fn only_what_is_allowed_is_open_and_what_is_published_leads_in() {
    let spec = NetworkSpec {
        allow: words(&["0.0.0.0/0:443", "10.9.9.9:80"]),
        deny: words(&["10.9.9.9:443"]),
        publish: words(&["8080:80", "127.0.0.1:8081:80"]),
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
    // Neither does it open the host.
    let before = lab.counted(DENIED);
    assert_eq!(lab.seen("guest", HOST, 443), None);
    assert!(lab.counted(DENIED) > before);

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

#[test]
fn datagrams_are_published_and_refused_like_connections() {
    let spec = NetworkSpec {
        deny: words(&["93.184.216.34:5300"]),
        publish: words(&["5353:53/udp", "127.0.0.1:5354:53/udp"]),
        ..NetworkSpec::default()
    };
    let Some(lab) = lab("udp", &spec, None) else {
        return;
    };
    lab.serve_datagrams("guest", 53);
    lab.serve_datagrams("guest", 54);
    for port in [5300, 5301] {
        lab.serve_datagrams("site", port);
    }
    let link = AddressRange::default().addresses(Slot(300)).unwrap();
    let local = Ipv4Addr::LOCALHOST;
    for port in [5353, 5354] {
        let seen = lab.datagram_seen("host", local, port);
        assert_eq!(seen, Some(link.host.to_string()), "{port}");
    }
    assert_eq!(
        lab.datagram_seen("site", HOST, 5353),
        Some(SITE.to_string())
    );
    assert_eq!(lab.datagram_seen("site", HOST, 5354), None);
    assert_eq!(lab.datagram_seen("host", link.sandbox, 54), None);
    assert_eq!(
        lab.datagram_seen("guest", SITE, 5301),
        Some(HOST.to_string())
    );
    assert_eq!(lab.datagram_seen("guest", SITE, 5300), None);
}
