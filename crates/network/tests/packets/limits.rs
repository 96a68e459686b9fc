//! Packets in a second.

use std::net::UdpSocket;
use std::time::Instant;

use cowslip_model::NetworkSpec;
use cowslip_model::network::NetworkLimits;
use cowslip_network::LIMITED;

use crate::lab::{PATIENCE, SITE, lab};

const RATE: u64 = 10;
const SENT: u64 = 300;

#[test]
fn packets_that_are_too_many_are_dropped_in_both_directions() {
    let spec = NetworkSpec {
        limits: NetworkLimits {
            packets: Some(RATE),
            ..NetworkLimits::default()
        },
        ..NetworkSpec::default()
    };
    let Some(lab) = lab("packets", &spec, None) else {
        return;
    };
    let bind = |namespace| {
        let socket = lab.inside(namespace, || UdpSocket::bind("0.0.0.0:7").unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (guest, site) = (bind("guest"), bind("site"));
    // Both know each other, and everybody on the way.
    guest.send_to(b"x", (SITE, 7)).unwrap();
    let (_, seen) = site.recv_from(&mut [0; 8]).unwrap();
    site.send_to(b"x", seen).unwrap();
    guest.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(lab.counted(LIMITED), 0);

    for (socket, to) in [(&site, seen), (&guest, (SITE, 7).into())] {
        let before = lab.counted(LIMITED);
        let begun = Instant::now();
        for _ in 0..SENT {
            socket.send_to(b"x", to).unwrap();
        }
        let limited = lab.counted(LIMITED) - before;
        // What passes at once, and what passes in the time that it took.
        let passed = 10 + RATE * (begun.elapsed().as_secs() + 1);
        assert!((SENT - passed..SENT).contains(&limited), "{limited}");
    }
}
