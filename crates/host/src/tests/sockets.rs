//! Listening sockets.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use cowslip_ledger::plan::Presence;

use super::Bench;
use crate::{Host, Socket, SocketSpec};

fn spec(path: PathBuf) -> SocketSpec {
    SocketSpec { path, mode: 0o600 }
}

#[test]
fn a_socket_listens_until_it_is_released() {
    let bench = Bench::new();
    let path = bench.place("socket");
    let (held, listener) = bench
        .host
        .bind_socket(bench.reserve::<Socket>(spec(path.clone())))
        .unwrap();
    let row = bench.row(held);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes, bench.probe(&row)), (b"hello", Presence::Present));
    bench.release_twice(&row);
    assert!(UnixStream::connect(&path).is_err());
}

#[test]
fn a_file_in_the_place_of_a_socket_is_left_alone() {
    let bench = Bench::new();
    let path = bench.place("socket");
    let (held, _listener) = bench
        .host
        .bind_socket(bench.reserve::<Socket>(spec(path.clone())))
        .unwrap();
    let row = bench.row(held);
    bench
        .host
        .bind_socket(bench.reserve::<Socket>(spec(path.clone())))
        .err()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "theirs").unwrap();
    bench.assert_foreign(&row);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
}

#[test]
fn a_path_that_no_socket_can_have_is_refused_with_the_way_out() {
    let bench = Bench::new();
    let path = bench.place(&"x".repeat(120));
    let error = bench
        .host
        .bind_socket(bench.reserve::<Socket>(spec(path)))
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("choose a shorter run directory"),
        "{error}"
    );
}

#[test]
fn a_socket_that_was_never_recorded_goes_by_its_path() {
    let bench = Bench::new();
    let path = bench.place("socket");
    let row = bench.unrecorded::<Socket>(spec(path.clone()));
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(bench.probe(&row), Presence::Present);
    bench.release_twice(&row);
}
