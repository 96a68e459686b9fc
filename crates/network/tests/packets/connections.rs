//! Connections that are there when the rules change, or when nobody remembers them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use cowslip_model::NetworkSpec;
use cowslip_network::DENIED;

use crate::lab::{PATIENCE, PRIVATE, SITE, lab, talks, words};

fn allowing(rules: &[&str]) -> NetworkSpec {
    NetworkSpec {
        allow: words(rules),
        ..NetworkSpec::default()
    }
}

#[test]
fn what_is_still_allowed_goes_on_and_what_is_not_is_reset() {
    let spec = allowing(&["93.184.216.34:7", "10.9.9.9:7"]);
    let Some(lab) = lab("change", &spec, None) else {
        return;
    };
    lab.echo("site", 7);
    let mut kept = lab.connect("guest", SITE, 7).unwrap();
    let mut lost = lab.connect("guest", PRIVATE, 7).unwrap();
    let mut denied = lab.connect("guest", SITE, 7).unwrap();
    for stream in [&mut kept, &mut lost, &mut denied] {
        assert_eq!(talks(stream), Ok(()));
    }
    lab.rules(&allowing(&["93.184.216.0/24"]), None);
    assert_eq!(talks(&mut kept), Ok(()));
    assert_eq!(talks(&mut lost), Err(ErrorKind::ConnectionReset));
    assert!(lab.counted(DENIED) > 0);

    let mut spec = allowing(&["0.0.0.0/0:7"]);
    lab.rules(&spec, None);
    assert_eq!(talks(&mut kept), Ok(()));
    spec.deny = words(&["93.184.216.34:7"]);
    lab.rules(&spec, None);
    for stream in [&mut kept, &mut denied] {
        assert_eq!(talks(stream), Err(ErrorKind::ConnectionReset));
    }
}

#[test]
fn a_connection_outlasts_the_address_of_its_name_but_not_its_rule() {
    let spec = allowing(&["example.org:7", "10.9.9.9:7"]);
    let Some(lab) = lab("name", &spec, None) else {
        return;
    };
    lab.echo("site", 7);
    assert!(lab.connect("guest", SITE, 7).is_err());
    lab.rules(&spec, None);
    lab.open(SITE, 4);
    let mut stream = lab.connect("guest", SITE, 7).unwrap();
    assert_eq!(talks(&mut stream), Ok(()));
    let begun = Instant::now();
    while lab.connect("guest", SITE, 7).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(talks(&mut stream), Ok(()));

    // The same name among others, of which no address is known.
    lab.rules(&allowing(&["a.example", "example.org:7"]), None);
    assert_eq!(talks(&mut stream), Ok(()));
    assert!(lab.connect("guest", SITE, 7).is_err());
    // Another rule that leads there carries it on, and is the one that counts from now on.
    let other = allowing(&["*.example:7"]);
    lab.rules(&other, None);
    lab.open(SITE, 300);
    assert_eq!(talks(&mut stream), Ok(()));
    lab.rules(&other, None);
    assert_eq!(talks(&mut stream), Ok(()));
    lab.rules(&spec, None);
    assert_eq!(talks(&mut stream), Err(ErrorKind::ConnectionReset));
}

#[test]
fn what_nobody_remembers_is_reset() {
    let Some(lab) = lab("forgotten", &NetworkSpec::default(), None) else {
        return;
    };
    lab.echo("site", 7);
    let mut stream = lab.connect("guest", SITE, 7).unwrap();
    assert_eq!(talks(&mut stream), Ok(()));
    lab.forget_connections();
    assert_eq!(talks(&mut stream), Err(ErrorKind::ConnectionReset));
    assert_eq!(lab.counted(DENIED), 0, "nothing was denied");
    assert!(lab.connect("guest", SITE, 7).is_ok());
}

#[test]
fn a_caller_stays_for_as_long_as_the_port_is_published() {
    let published = NetworkSpec {
        publish: words(&["8007:7"]),
        ..NetworkSpec::default()
    };
    let Some(lab) = lab("caller", &published, None) else {
        return;
    };
    let listener = lab.inside("guest", || TcpListener::bind(("0.0.0.0", 7)).unwrap());
    let mut caller = lab.connect("host", Ipv4Addr::LOCALHOST, 8007).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut pass = || {
        said(&mut caller, &mut served)?;
        said(&mut served, &mut caller)
    };
    assert_eq!(pass(), Ok(()));
    let mut spec = published.clone();
    spec.allow = words(&["1.1.1.1"]);
    lab.rules(&spec, None);
    assert_eq!(pass(), Ok(()));
    spec.publish.clear();
    lab.rules(&spec, None);
    // What the caller says arrives no more, and the guest hears so when it says something: an acknowledgement at least.
    let mut ended = said(&mut caller, &mut served).unwrap_err();
    if ended == ErrorKind::WouldBlock {
        let answered = served.write_all(b"x");
        let heard = answered.and_then(|()| served.read(&mut [0]));
        ended = heard.unwrap_err().kind();
    }
    assert_eq!(ended, ErrorKind::ConnectionReset);
    assert!(lab.counted(DENIED) > 0);
}

/// Whether what one end says arrives at the other.
fn said(from: &mut TcpStream, to: &mut TcpStream) -> Result<(), ErrorKind> {
    from.write_all(b"x").map_err(|error| error.kind())?;
    to.read_exact(&mut [0]).map_err(|error| error.kind())
}
