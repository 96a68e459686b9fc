//! The client against a scripted peer on a socket pair.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Qmp, QmpError};

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";

/// The monitor's side.
struct Peer(BufReader<UnixStream>);

impl Peer {
    async fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line).await.unwrap();
        (count > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    async fn answer(&mut self, to: &Value, with: Value) {
        let mut answer = with;
        answer["id"] = to["id"].clone();
        self.write(format!("{answer}\r\n").as_bytes()).await;
    }
}

/// A client that has negotiated, and its peer.
async fn connected() -> (Qmp, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer(BufReader::new(theirs));
    let greet = async {
        peer.write(GREETING).await;
        let asked = peer.read().await.unwrap();
        assert_eq!(asked["execute"], "qmp_capabilities");
        peer.answer(&asked, json!({ "return": {} })).await;
    };
    let (client, ()) = tokio::join!(Qmp::over(ours), greet);
    (client.unwrap(), peer)
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let (client, mut peer) = connected().await;
    let serve = async {
        let first = peer.read().await.unwrap();
        let second = peer.read().await.unwrap();
        for asked in [&second, &first] {
            peer.answer(asked, json!({ "return": { "is": asked["execute"] } }))
                .await;
        }
    };
    let (a, b, ()) = tokio::join!(
        client.execute("query-a", json!({})),
        client.execute("query-b", json!({})),
        serve
    );
    assert_eq!(a.unwrap()["is"], "query-a");
    assert_eq!(b.unwrap()["is"], "query-b");
}

#[tokio::test]
async fn events_between_answers_reach_subscribers() {
    let (client, mut peer) = connected().await;
    let mut events = client.subscribe();
    let serve = async {
        let asked = peer.read().await.unwrap();
        assert_eq!(asked["arguments"], json!({ "a": 1 }));
        peer.write(b"{\"event\": \"STOP\", \"timestamp\": {}}\n{\"event\": \"MIGRA")
            .await;
        peer.write(b"TION\", \"data\": {\"status\": \"active\"}}\n")
            .await;
        peer.answer(&asked, json!({ "return": {} })).await;
    };
    let (answer, ()) = tokio::join!(client.execute("stop", json!({ "a": 1 })), serve);
    answer.unwrap();
    assert_eq!(events.recv().await.unwrap().name, "STOP");
    assert_eq!(events.recv().await.unwrap().data["status"], "active");
}

#[tokio::test]
async fn a_refusal_is_an_error_and_the_channel_lives() {
    let (client, mut peer) = connected().await;
    let serve = async {
        let asked = peer.read().await.unwrap();
        peer.answer(
            &asked,
            json!({ "error": { "class": "GenericError", "desc": "no such disk" } }),
        )
        .await;
        let asked = peer.read().await.unwrap();
        peer.answer(&asked, json!({ "return": 5 })).await;
    };
    let ask = async {
        let refused = client.execute("blockdev-add", json!({})).await.unwrap_err();
        assert_eq!(refused.to_string(), "blockdev-add: no such disk");
        assert_eq!(
            client.execute("query-status", json!({})).await.unwrap(),
            json!(5)
        );
    };
    tokio::join!(serve, ask);
}

/// Whatever ends the channel, waiting and later callers and subscribers are all told.
async fn breaks(bytes: &[u8], why: &str) {
    let (client, mut peer) = connected().await;
    let mut events = client.subscribe();
    let serve = async {
        peer.read().await.unwrap();
        // The client may close before it has taken a long line whole.
        let _ = peer.0.get_mut().write_all(bytes).await;
        drop(peer);
    };
    let (waiting, ()) = tokio::join!(client.execute("query-block", json!({})), serve);
    for error in [
        waiting.unwrap_err(),
        client.execute("stop", json!({})).await.unwrap_err(),
    ] {
        let QmpError::Closed(told) = error else {
            panic!("{error}")
        };
        assert!(told.contains(why), "{told}");
    }
    assert!(events.recv().await.is_err(), "subscribers wait for ever");
    assert!(
        client.subscribe().recv().await.is_err(),
        "a late subscriber waits for ever"
    );
}

#[tokio::test]
async fn an_end_of_the_stream_is_told() {
    breaks(b"", "closed the control channel").await;
    breaks(b"{\"return\": {}, \"id\"", "closed the control channel").await;
}

#[tokio::test]
async fn nonsense_ends_the_channel() {
    breaks(b"<html>\n", "no QMP message").await;
    breaks(b"{\"return\": {}, \"id\": 77}\n", "which nobody asked").await;
    breaks(
        b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n",
        "JSON parse error",
    )
    .await;
}

#[tokio::test]
async fn an_endless_line_ends_the_channel() {
    breaks(&vec![b'{'; super::wire::LINE_MAX + 2], "over").await;
}

#[tokio::test]
async fn a_peer_that_closes_without_a_greeting_is_an_error() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Qmp::over(ours).await, Err(QmpError::Closed(_))));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_silent_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(
        Qmp::over(ours).await.unwrap_err(),
        QmpError::TimedOut {
            command: "greeting"
        }
    );
    let (client, _peer) = connected().await;
    let error = client.execute("stop", json!({})).await.unwrap_err();
    assert_eq!(error, QmpError::TimedOut { command: "stop" });
}

#[tokio::test]
async fn the_connection_closes_with_the_last_client() {
    let (client, mut peer) = connected().await;
    let other = client.clone();
    drop(client);
    other.post("migrate_cancel");
    assert_eq!(peer.read().await.unwrap()["execute"], "migrate_cancel");
    drop(other);
    assert_eq!(peer.read().await, None);
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (mut read, write) = std::io::pipe().unwrap();
    let peer = tokio::task::spawn_blocking(move || serve_descriptors(theirs));
    let client = Qmp::over(UnixStream::from_std(ours).unwrap())
        .await
        .unwrap();
    client
        .execute_with_fd("getfd", json!({ "fdname": "image" }), write.into())
        .await
        .unwrap();
    let fds = peer.await.unwrap();
    assert_eq!(fds.len(), 1, "one descriptor, sent once");
    for fd in fds {
        std::fs::File::from(fd).write_all(b"through").unwrap();
    }
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

fn serve_descriptors(stream: StdUnixStream) -> Vec<OwnedFd> {
    (&stream).write_all(GREETING).unwrap();
    let mut fds = Vec::new();
    for id in 1..=2 {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0; 1];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut byte)];
            let got = recvmsg(&stream, &mut parts, &mut ancillary, RecvFlags::empty()).unwrap();
            assert_eq!(got.bytes, 1);
            line.push(byte[0]);
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    fds.extend(passed);
                }
            }
        }
        (&stream)
            .write_all(format!("{{\"return\": {{}}, \"id\": {id}}}\r\n").as_bytes())
            .unwrap();
    }
    fds
}
