use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Child;
use std::time::Duration;

use axum::extract::ws::Message;
use cowslip_model::api::{ClientMessage, ErrorBody, ErrorCode, ForwardRequest, ServerMessage};
use tokio::sync::mpsc;

use crate::fake::Fake;
use crate::sessions::{Script, scripted};

/// Only a failure ever waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command that forwards, and a connection to it.
struct Forwarding(Child, String);

impl Forwarding {
    fn start(fake: &Fake, words: &[&str]) -> Self {
        let mut child = fake.spawn(words);
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        Self(child, line.trim_end().to_owned())
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.1).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What comes until the client has said all; acknowledged at once.
async fn heard(script: &mut Script) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match script.0.recv().await {
            Some(Ok(Message::Binary(bytes))) => {
                all.extend_from_slice(&bytes[1..]);
                let bytes = all.len() as u64;
                script.say(ServerMessage::StdinTaken { bytes }).await;
            }
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text).unwrap() {
                ClientMessage::StdinEnd => return all,
                ClientMessage::OutputTaken { .. } => {}
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn each_side_of_a_connection_closes_when_it_has_said_all() {
    let fake = scripted(|mut script| async move {
        let request: ForwardRequest = script.request().await;
        assert_eq!(request.port, 80);
        script.say(ServerMessage::Connected).await;
        let all = heard(&mut script).await;
        // More than may be on the way: the command says what was taken.
        let mut taken = 0;
        for (index, piece) in all.chunks(32 << 10).enumerate() {
            while (index as u64 * (32 << 10)) >= taken + (256 << 10) {
                if let Some(ClientMessage::OutputTaken { bytes }) = script.heard().await.1 {
                    taken = bytes;
                }
            }
            script.write(1, piece).await;
        }
        script.say(ServerMessage::OutputEnd).await;
        script.0.send(Message::Close(None)).await.unwrap();
    });
    let forwarding = Forwarding::start(&fake, &["forward", "-q", "web", "0:80"]);
    let data: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    // Several at once.
    let mut streams = [forwarding.connect(), forwarding.connect()];
    for stream in &mut streams {
        stream.write_all(&data).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for mut stream in streams {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == data);
    }
}

#[test]
fn the_guests_end_is_heard_before_ours() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let fake = scripted(move |mut script| {
        let tell = tell.clone();
        async move {
            script.request::<ForwardRequest>().await;
            script.say(ServerMessage::Connected).await;
            script.write(1, b"all of it").await;
            script.say(ServerMessage::OutputEnd).await;
            tell.send(heard(&mut script).await).unwrap();
            script.0.send(Message::Close(None)).await.unwrap();
        }
    });
    let forwarding = Forwarding::start(&fake, &["forward", "-q", "web", "0:80"]);
    let mut stream = forwarding.connect();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "all of it");
    stream.write_all(b"an answer").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(told.blocking_recv().unwrap(), b"an answer");
}

#[test]
fn a_connection_that_fails_is_broken_off_and_the_next_one_is_tried() {
    let fake = scripted(|mut script| async move {
        script.request::<ForwardRequest>().await;
        let error = ErrorBody {
            code: ErrorCode::Conflict,
            message: "nothing listens".into(),
            causes: Vec::new(),
            hint: None,
        };
        script.say(ServerMessage::Failed { error }).await;
        script.0.send(Message::Close(None)).await.unwrap();
    });
    let mut forwarding = Forwarding::start(&fake, &["forward", "web", "--json", "0:80"]);
    let listening: serde_json::Value = serde_json::from_str(&forwarding.1).unwrap();
    assert_eq!(listening["guest_port"], 80);
    forwarding.1 = listening["address"].as_str().unwrap().to_owned();
    let mut errors = BufReader::new(forwarding.0.stderr.take().unwrap());
    for _ in 0..2 {
        let error = forwarding.connect().read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        assert_eq!(line, "cowslip: nothing listens\n");
    }
}

#[test]
fn a_local_side_that_breaks_off_ends_the_session() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let fake = scripted(move |mut script| {
        let tell = tell.clone();
        async move {
            script.request::<ForwardRequest>().await;
            script.say(ServerMessage::Connected).await;
            script.write(1, b"never read").await;
            tell.send(true).unwrap();
            // No word that it has said all.
            while let (_, Some(message)) = script.heard().await {
                assert!(matches!(message, ClientMessage::OutputTaken { .. }));
            }
            tell.send(false).unwrap();
        }
    });
    let forwarding = Forwarding::start(&fake, &["forward", "-q", "web", "0:80"]);
    let stream = forwarding.connect();
    assert_eq!(told.blocking_recv(), Some(true));
    // Closed with something unread: a reset.
    stream.peek(&mut [0]).unwrap();
    drop(stream);
    assert_eq!(told.blocking_recv(), Some(false));
}

#[test]
fn what_cannot_be_listened_on_is_said() {
    let fake = scripted(|_| async {});
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let printed = fake.run(&["forward", "web", &format!("{port}:80")]);
    assert_eq!((printed.code, printed.out.as_str()), (125, ""));
    let said = format!("cowslip: listen on \"127.0.0.1:{port}\": ");
    assert!(printed.err.starts_with(&said), "{printed:?}");
}
