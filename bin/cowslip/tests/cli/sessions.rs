use std::io::{BufRead, BufReader};
use std::process::Child;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::get;
use cowslip_model::ProcessId;
use cowslip_model::api::{ClientMessage, ErrorBody, ErrorCode, RunRequest, ServerMessage};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use crate::fake::{Fake, Printed, parsed, sandbox, then};

/// An engine whose sessions go as `script` says.
pub(crate) fn scripted<F>(script: impl Fn(Script) -> F + Clone + Send + Sync + 'static) -> Fake
where
    F: Future<Output = ()> + Send + 'static,
{
    let open = move |upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(async move |socket| script(Script(socket)).await)
    };
    Fake::new(
        Router::new()
            .route("/v1/run", get(open.clone()))
            .route("/v1/sandboxes/{id}/exec", get(open.clone()))
            .route("/v1/sandboxes/{id}/forward", get(open))
            .route(
                "/v1/sandboxes/{id}",
                get(async || axum::Json(sandbox(0xab, "web", "running", then()))),
            ),
    )
}

pub(crate) struct Script(pub(crate) WebSocket);

impl Script {
    pub(crate) async fn request<T: serde::de::DeserializeOwned>(&mut self) -> T {
        match self.0.recv().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn say(&mut self, message: ServerMessage) {
        let text = serde_json::to_string(&message).unwrap();
        self.0.send(Message::Text(text.into())).await.unwrap();
    }

    pub(crate) async fn started(&mut self) {
        self.say(ServerMessage::Started {
            process: ProcessId::from_bits(1),
        })
        .await;
    }

    pub(crate) async fn write(&mut self, channel: u8, bytes: &[u8]) {
        let mut framed = vec![channel];
        framed.extend_from_slice(bytes);
        self.0.send(Message::Binary(framed.into())).await.unwrap();
    }

    pub(crate) async fn exit(mut self, code: i32) {
        self.say(ServerMessage::Exited { code }).await;
        self.0.send(Message::Close(None)).await.unwrap();
        while self.0.recv().await.is_some_and(|message| message.is_ok()) {}
    }

    async fn fail(mut self, code: ErrorCode) {
        let error = ErrorBody {
            code,
            message: "no".into(),
            causes: Vec::new(),
            hint: None,
        };
        self.say(ServerMessage::Failed { error }).await;
    }

    /// The next message about the session, and the bytes of input before it. None: the client is gone.
    pub(crate) async fn heard(&mut self) -> (usize, Option<ClientMessage>) {
        let mut input = 0;
        loop {
            match self.0.recv().await {
                Some(Ok(Message::Binary(bytes))) => input += bytes.len() - 1,
                Some(Ok(Message::Text(text))) => {
                    return (input, Some(serde_json::from_str(&text).unwrap()));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return (input, None),
            }
        }
    }
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        signal,
    )
    .unwrap();
}

/// Waits for the first line of a command's output, and keeps the rest readable.
fn first_line(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    out
}

#[test]
fn the_commands_exit_code_is_ours() {
    for (code, ours) in [(0, 0), (1, 1), (42, 42), (137, 137), (255, 255)] {
        let fake = scripted(move |mut script| async move {
            script.request::<RunRequest>().await;
            script.started().await;
            script.exit(code).await;
        });
        assert_eq!(fake.run(&["run", "--rm", "debian", "true"]).code, ours);
    }
    for (code, ours) in [
        (ErrorCode::CommandNotFound, 127),
        (ErrorCode::CommandNotExecutable, 126),
        (ErrorCode::TimedOut, 124),
        (ErrorCode::NotFound, 125),
    ] {
        let fake = scripted(move |mut script| async move {
            script.request::<serde_json::Value>().await;
            script.fail(code).await;
        });
        let printed = fake.run(&["exec", "web", "x"]);
        assert_eq!(
            (printed.code, printed.err.as_str()),
            (ours, "cowslip: no\n")
        );
    }
}

#[test]
fn the_request_is_what_was_typed() {
    let (tell, told) = std::sync::mpsc::channel();
    let fake = scripted(move |mut script| {
        let tell = tell.clone();
        async move {
            tell.send(script.request::<RunRequest>().await).unwrap();
            script.started().await;
            script.exit(0).await;
        }
    });
    let line = "run --rm -i -e A=1 -w /srv -u 7:8 --cpus 2 --memory 512m --disk 2g --name web --ttl 1h \
                --timeout 5s --kernel deb debian -- cmd -x --rm";
    assert_eq!(
        fake.run(&line.split_whitespace().collect::<Vec<_>>()).code,
        0
    );
    let request = serde_json::to_value(told.recv().unwrap()).unwrap();
    insta::assert_json_snapshot!(request);
}

#[test]
fn output_is_whole_and_each_stream_is_its_own() {
    // covers: output never truncated at exit
    let fake = scripted(|mut script| async move {
        script.request::<serde_json::Value>().await;
        script.started().await;
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..200 {
            script.write(1, &piece).await;
        }
        script.write(2, b"to stderr\n").await;
        script.exit(3).await;
    });
    let printed = fake.run(&["exec", "web", "x"]);
    assert_eq!((printed.code, printed.out.len()), (3, 200 * (64 << 10)));
    assert_eq!(printed.err, "to stderr\n");
}

#[test]
fn input_is_sent_to_its_end_only_when_asked_for() {
    let fake = scripted(|mut script| async move {
        let request: cowslip_model::api::ExecRequest = script.request().await;
        script.started().await;
        let mut total = 0;
        if request.stdin {
            // More than may be on the way at once: it goes on as we say that it was taken.
            while let Some(Ok(message)) = script.0.recv().await {
                match message {
                    Message::Binary(bytes) => {
                        total += bytes.len() as u64 - 1;
                        script.say(ServerMessage::StdinTaken { bytes: total }).await;
                    }
                    Message::Text(text) => {
                        assert_eq!(
                            serde_json::from_str::<ClientMessage>(&text).unwrap(),
                            ClientMessage::StdinEnd
                        );
                        break;
                    }
                    _ => {}
                }
            }
        }
        script.write(1, total.to_string().as_bytes()).await;
        script.exit(0).await;
    });
    let input = vec![7; 3 << 20];
    assert_eq!(
        fake.run_with(&["exec", "-i", "web", "wc"], &input).out,
        (3 << 20).to_string()
    );
    assert_eq!(fake.run_with(&["exec", "web", "wc"], &input).out, "0");
}

#[test]
fn input_that_nobody_takes_is_bounded_and_a_signal_passes_it() {
    const WINDOW: usize = 256 << 10;
    let (tell, mut told) = mpsc::unbounded_channel();
    let fake = scripted(move |mut script| {
        let tell = tell.clone();
        async move {
            script.request::<serde_json::Value>().await;
            script.started().await;
            let mut input = 0;
            // Everything that comes is read, and nothing is said to be taken.
            let message: ClientMessage = loop {
                match script.0.recv().await.unwrap().unwrap() {
                    Message::Binary(bytes) => {
                        input += bytes.len() - 1;
                        if input >= WINDOW {
                            tell.send(()).unwrap();
                        }
                    }
                    Message::Text(text) => break serde_json::from_str(&text).unwrap(),
                    _ => {}
                }
            };
            assert_eq!(message, ClientMessage::Signal { signal: 2 });
            script.write(1, input.to_string().as_bytes()).await;
            script.exit(130).await;
        }
    });
    let mut child = fake.spawn(&["exec", "-i", "web", "sleep"]);
    let mut stdin = child.stdin.take().unwrap();
    let writer =
        std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &vec![0; 64 << 20]));
    told.blocking_recv().unwrap();
    signal(&child, Signal::INT);
    let printed: Printed = child.wait_with_output().unwrap().into();
    assert_eq!(printed.code, 130);
    let input: usize = printed.out.parse().unwrap();
    assert!(
        input < WINDOW + (64 << 10),
        "{input} bytes of input were on the way"
    );
    assert!(writer.join().unwrap().is_err(), "it was all read");
}

#[test]
fn the_third_signal_gives_the_command_up() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let fake = scripted(move |mut script| {
        let tell = tell.clone();
        async move {
            script.request::<serde_json::Value>().await;
            script.started().await;
            script.write(1, b"ready\n").await;
            loop {
                let (_, message) = script.heard().await;
                let last = message.is_none();
                tell.send(message).unwrap();
                if last {
                    return;
                }
            }
        }
    });
    let mut child = fake.spawn(&["exec", "web", "stubborn"]);
    let _out = first_line(&mut child);
    for number in [15, 15] {
        signal(&child, Signal::TERM);
        assert_eq!(
            told.blocking_recv().unwrap(),
            Some(ClientMessage::Signal { signal: number })
        );
    }
    signal(&child, Signal::TERM);
    let printed: Printed = child.wait_with_output().unwrap().into();
    assert_eq!(printed.code, 143);
    assert!(
        printed.err.contains("once more gives the command up"),
        "{printed:?}"
    );
    assert_eq!(
        told.blocking_recv().unwrap(),
        None,
        "the engine was not told"
    );
}

#[test]
fn an_interrupt_before_the_start_gives_up() {
    // covers R34
    let (tell, mut told) = mpsc::unbounded_channel();
    let fake = scripted(move |mut script| {
        let tell = tell.clone();
        async move {
            script.request::<serde_json::Value>().await;
            tell.send(()).unwrap();
            assert_eq!(script.heard().await, (0, None));
            tell.send(()).unwrap();
        }
    });
    let child = fake.spawn(&["run", "--rm", "debian", "true"]);
    told.blocking_recv().unwrap();
    signal(&child, Signal::INT);
    let printed: Printed = child.wait_with_output().unwrap().into();
    assert_eq!((printed.code, printed.err.as_str()), (130, ""));
    told.blocking_recv().unwrap();
}

#[test]
fn a_session_cut_short_is_a_failure() {
    let fake = scripted(|mut script| async move {
        script.request::<serde_json::Value>().await;
        script.started().await;
        script.write(1, b"half").await;
    });
    let printed = fake.run(&["exec", "web", "x"]);
    assert_eq!((printed.code, printed.out.as_str()), (125, "half"));
    assert!(
        printed.err.starts_with("cowslip: the engine"),
        "{printed:?}"
    );
}

#[test]
fn a_detached_run_prints_its_id() {
    let script = |mut script: Script| async move {
        let request: RunRequest = script.request().await;
        assert!(request.exec.is_none_or(|exec| exec.detach));
        let sandbox = Box::new(sandbox(0xab, "web", "running", then()));
        script.say(ServerMessage::Sandbox { sandbox }).await;
        script.0.send(Message::Close(None)).await.unwrap();
        // The client's own close.
        let _ = tokio::time::timeout(Duration::from_secs(5), script.0.recv()).await;
    };
    let fake = scripted(script);
    let printed = fake.run(&["run", "-d", "debian"]);
    assert_eq!(
        (printed.code, printed.out.as_str()),
        (0, "00000000000000ab\n")
    );
    assert_eq!(
        parsed(&fake.run(&["run", "-d", "--json", "debian", "sleep", "9"]))["name"],
        "web"
    );
}
