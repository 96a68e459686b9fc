//! An agent of our own as an ordinary process, and what tests do with it.
// Each test file uses a part of it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::panic
)]

use std::process::{Child, Command};
use std::time::Duration;

use cowslip_proto::AgentClient;
use cowslip_proto::client::{ExecEvent, ExecEvents, ExecStart, ExitStatus};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tempfile::TempDir;
use tokio::net::UnixStream;

/// Long enough for a loaded machine: only a failure ever waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that dies with the test.
pub struct Agent {
    child: Child,
    pub dir: TempDir,
}

impl Agent {
    /// Starts one and waits until its socket is there.
    pub fn start(framed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let watch = inotify::init(CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, dir.path(), WatchFlags::CREATE).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowslip-agent"));
        command.arg("serve");
        if framed {
            command.arg("--link");
        }
        let child = command.arg(dir.path().join("socket")).spawn().unwrap();
        let mut buf = [std::mem::MaybeUninit::uninit(); 512];
        inotify::Reader::new(watch, &mut buf).next().unwrap();
        Self { child, dir }
    }

    pub async fn connect(&self) -> AgentClient {
        // The socket is bound and may not be listening yet.
        let stream = loop {
            match UnixStream::connect(self.dir.path().join("socket")).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        AgentClient::connect_stream(stream, PATIENCE)
            .await
            .unwrap()
            .0
    }

    pub async fn connect_link(&self) -> AgentClient {
        let stream = loop {
            match UnixStream::connect(self.dir.path().join("socket")).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        AgentClient::connect_serial(stream, PATIENCE)
            .await
            .unwrap()
            .0
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell command.
pub fn sh(script: &str) -> ExecStart {
    ExecStart::new(["/bin/sh", "-c", script])
}

/// What a process wrote, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub skipped: u64,
    pub status: ExitStatus,
}

/// Follows a process to its end.
pub async fn finish(events: &mut ExecEvents) -> Outcome {
    let (mut stdout, mut stderr, mut skipped) = (Vec::new(), Vec::new(), 0);
    loop {
        match events.next().await.unwrap().unwrap() {
            ExecEvent::Stdout(data) => stdout.extend_from_slice(&data),
            ExecEvent::Stderr(data) => stderr.extend_from_slice(&data),
            ExecEvent::Skipped(bytes) => skipped += bytes,
            ExecEvent::Exited(status) => {
                assert!(events.next().await.unwrap().is_none());
                let text = |b| String::from_utf8(b).unwrap();
                return Outcome {
                    stdout: text(stdout),
                    stderr: text(stderr),
                    skipped,
                    status,
                };
            }
        }
    }
}

/// Runs a command without input to its end.
pub async fn run(client: &AgentClient, start: ExecStart) -> Outcome {
    let mut session = client.exec(start).await.unwrap();
    finish(&mut session.events).await
}

/// Reads output until it contains a text.
pub async fn read_until(events: &mut ExecEvents, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match events.next().await.unwrap().unwrap() {
            ExecEvent::Stdout(data) => seen.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{other:?} before {text:?} in {seen:?}"),
        }
    }
    seen
}
