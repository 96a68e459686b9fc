//! Connections to ports of the guest: whole, half closed and broken off as they would be without us.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::pin;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use common::{Agent, PATIENCE, run, sh};
use cowslip_proto::AgentClient;
use cowslip_proto::client::{CallError, Configure, ForwardReader, GuestNetwork};
use cowslip_proto::limits::FORWARD_WINDOW;
use tonic::Code;

/// A server of one connection.
fn serve<T: Send + 'static>(
    with: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        with(stream)
    });
    (port, served)
}

/// The server's end, while everything else goes on.
async fn joined<T: Send + 'static>(served: JoinHandle<T>) -> T {
    let join = tokio::task::spawn_blocking(|| served.join().unwrap());
    join.await.unwrap()
}

fn is(error: &CallError, expected: Code) -> bool {
    matches!(error, CallError::Refused { code, .. } if *code == expected)
}

/// Reads to the end, saying at once that all is taken.
async fn read_to_end(reader: &mut ForwardReader) -> Result<Vec<u8>, CallError> {
    let acknowledge = reader.acknowledge();
    let mut all = Vec::new();
    while let Some(data) = reader.next().await? {
        all.extend_from_slice(&data);
        acknowledge.taken(all.len() as u64).await;
    }
    Ok(all)
}

/// The same, and on to the end of the other way: a writer waits for what the reader hears.
async fn read_out(reader: &mut ForwardReader) -> Vec<u8> {
    let all = read_to_end(reader).await.unwrap();
    reader.finished().await.unwrap();
    all
}

/// Bytes of which no piece is like another.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut word = seed;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

#[tokio::test]
async fn each_side_closes_when_it_has_said_all() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    // The server answers only what it has read to its end.
    let (port, served) = serve(|mut stream| {
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        write!(stream, "heard {heard}").unwrap();
    });
    let (mut writer, mut reader) = client.forward(port).await.unwrap();
    writer
        .write(Bytes::from_static(b"all of it"))
        .await
        .unwrap();
    writer.close().await.unwrap();
    assert_eq!(read_to_end(&mut reader).await.unwrap(), b"heard all of it");
    reader.finished().await.unwrap();
    joined(served).await;

    // And the other way round: it has long said all when it reads.
    let (port, served) = serve(|mut stream| {
        stream.write_all(b"all of it").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        heard
    });
    let (mut writer, mut reader) = client.forward(port).await.unwrap();
    assert_eq!(read_to_end(&mut reader).await.unwrap(), b"all of it");
    writer
        .write(Bytes::from_static(b"an answer"))
        .await
        .unwrap();
    writer.close().await.unwrap();
    reader.finished().await.unwrap();
    assert_eq!(joined(served).await, "an answer");
}

#[tokio::test]
async fn much_goes_both_ways_at_once_and_arrives_as_it_was() {
    const LENGTH: usize = 16 << 20;
    let agent = Agent::start(true);
    let client = agent.connect_link().await;
    let (up, down) = (noise(LENGTH, 1), noise(LENGTH, 2));
    let sent = down.clone();
    let (port, served) = serve(move |mut stream| {
        let mut writing = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            writing.write_all(&sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        writer.join().unwrap();
        heard
    });
    let (mut writer, mut reader) = client.forward(port).await.unwrap();
    let input = Bytes::from(up.clone());
    let writing = async {
        writer.write(input).await.unwrap();
        writer.close().await.unwrap();
    };
    let ((), heard) = tokio::join!(writing, read_out(&mut reader));
    assert!(heard == down);
    assert!(joined(served).await == up);
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_named() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let error = client.forward(port).await.unwrap_err();
    assert!(is(&error, Code::FailedPrecondition), "{error:?}");
    let said = format!("nothing listens on port {port} in the guest");
    assert_eq!(error.to_string(), said);
    let error = client.forward(0).await.unwrap_err();
    assert!(is(&error, Code::InvalidArgument), "{error:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_is_no_proper_end() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let (port, served) = serve(|mut stream| {
        stream.write_all(b"hello").unwrap();
        let mut heard = Vec::new();
        let ended = stream.read_to_end(&mut heard);
        (heard, ended.map_err(|error| error.kind()))
    });
    let (mut writer, mut reader) = client.forward(port).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "hello");
    writer.write(Bytes::from_static(b"half of")).await.unwrap();
    tokio::select! {
        taken = writer.all_taken() => taken.unwrap(),
        said = reader.next() => panic!("{said:?}"),
    }
    drop((writer, reader));
    let (heard, ended) = joined(served).await;
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    assert_eq!(heard, b"half of");
}

#[tokio::test]
async fn a_server_that_breaks_off_is_no_proper_end() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    // What it has not read when it closes makes the end a reset.
    let (port, served) = serve(|stream| {
        stream.peek(&mut [0]).unwrap();
    });
    let (mut writer, mut reader) = client.forward(port).await.unwrap();
    writer
        .write(Bytes::from_static(b"never read"))
        .await
        .unwrap();
    let error = read_to_end(&mut reader).await.unwrap_err();
    assert!(is(&error, Code::Aborted), "{error:?}");
    joined(served).await;
}

/// Connections as full as they get, both ways, and what goes on beside them.
async fn connections_that_stand_still(client: &AgentClient) {
    let mut still = Vec::new();
    let mut servers = Vec::new();
    // More than share the window of the whole connection.
    for _ in 0..6 {
        // Says more than anybody takes, and hears nothing.
        let (go, on) = mpsc::channel::<()>();
        let (port, served) = serve(move |mut stream| {
            stream.set_nonblocking(true).unwrap();
            let data = [0; 1 << 16];
            let mut told = 0;
            // Until neither the socket nor we have room.
            while told < 8 << 20 {
                match stream.write(&data) {
                    Ok(length) => told += length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
            let _ = on.recv();
        });
        let (mut writer, mut reader) = client.forward(port).await.unwrap();
        {
            let mut filling = pin!(async {
                loop {
                    writer.write(Bytes::from(vec![0; 1 << 20])).await.unwrap();
                }
            });
            let mut heard = 0;
            while heard < FORWARD_WINDOW {
                tokio::select! {
                    () = &mut filling => {}
                    data = reader.next() => heard += data.unwrap().unwrap().len() as u64,
                }
            }
            // Nothing was said to be taken, so no more comes, whatever the socket's own buffers hold.
            let bound = Duration::from_millis(200);
            let more = async {
                tokio::select! {
                    () = filling => None,
                    data = reader.next() => data.unwrap(),
                }
            };
            assert_eq!(tokio::time::timeout(bound, more).await.ok(), None);
        }
        still.push((writer, reader));
        servers.push((go, served));
    }
    assert_eq!(run(client, sh("echo alive")).await.stdout, "alive\n");
    let (port, served) = serve(|mut stream| {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        stream.write_all(&heard).unwrap();
    });
    let (mut writer, mut reader) = client.forward(port).await.unwrap();
    let data = noise(1 << 20, 3);
    let input = Bytes::from(data.clone());
    let writing = async {
        writer.write(input).await.unwrap();
        writer.close().await.unwrap();
    };
    let ((), heard) = tokio::join!(writing, read_out(&mut reader));
    assert!(heard == data);
    joined(served).await;
    drop(still);
    for (go, served) in servers {
        drop(go);
        joined(served).await;
    }
}

#[tokio::test]
async fn connections_that_stand_still_hold_nothing_up() {
    let agent = Agent::start(true);
    let client = agent.connect_link().await;
    connections_that_stand_still(&client).await;
}

#[tokio::test]
async fn a_network_that_cannot_be_is_refused_before_anything_is_done() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let network = GuestNetwork {
        mac: [2; 6],
        address: [10, 0, 2, 15].into(),
        prefix: 33,
        gateway: [10, 0, 2, 2].into(),
        resolvers: Vec::new(),
    };
    let with = Configure {
        network: Some(network),
        ..Configure::default()
    };
    let error = client.configure(with).await.unwrap_err();
    assert!(is(&error, Code::InvalidArgument), "{error:?}");
    assert!(error.to_string().contains("prefix"), "{error}");
}
