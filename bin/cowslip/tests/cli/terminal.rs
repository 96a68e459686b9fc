use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;

use axum::extract::ws::Message;
use cowslip_model::api::{ClientMessage, ExecRequest, WindowSize};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tokio::sync::mpsc;

use crate::sessions::{Script, scripted, signal};

/// A terminal with a command on it.
pub(crate) struct Terminal {
    leader: OwnedFd,
    follower: OwnedFd,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        let leader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&leader).unwrap();
        unlockpt(&leader).unwrap();
        let name = ptsname(&leader, Vec::new()).unwrap();
        let follower =
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let terminal = Self { leader, follower };
        terminal.resize(30, 100);
        terminal
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.leader, size).unwrap();
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.follower).unwrap().local_modes;
        !modes.contains(LocalModes::ECHO) && !modes.contains(LocalModes::ISIG)
    }

    fn dup(&self) -> OwnedFd {
        rustix::io::dup(self.follower.as_fd()).unwrap()
    }

    pub(crate) fn spawn(&self, fake: &crate::fake::Fake, arguments: &[&str]) -> Child {
        fake.command(arguments)
            .env("TERM", "vt220")
            .stdin(self.dup())
            .stdout(self.dup())
            .stderr(self.dup())
            .spawn()
            .unwrap()
    }

    /// Reads what the command shows up to this text, and gives it.
    pub(crate) fn until(&self, text: &str) -> String {
        let mut leader = File::from(rustix::io::dup(&self.leader).unwrap());
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(text.as_bytes()) {
            leader.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    fn type_in(&self, text: &[u8]) {
        File::from(rustix::io::dup(&self.leader).unwrap())
            .write_all(text)
            .unwrap();
    }
}

/// Starts a process that shows "ready" and passes on what it hears.
fn listening(tell: mpsc::UnboundedSender<Option<ClientMessage>>) -> crate::fake::Fake {
    scripted(move |mut script: Script| {
        let tell = tell.clone();
        async move {
            let request: ExecRequest = script.request().await;
            assert_eq!(
                request.terminal,
                Some(WindowSize {
                    rows: 30,
                    columns: 100
                })
            );
            assert_eq!(request.env["TERM"], "vt220");
            script.started().await;
            // The size once more, in case that it changed: from here on the terminal is raw.
            let resized = script.heard().await.1;
            assert!(
                matches!(resized, Some(ClientMessage::Resize { .. })),
                "{resized:?}"
            );
            script.write(1, b"ready\r\n").await;
            loop {
                match script.0.recv().await {
                    // What was typed: ^C, as a byte and not as a signal.
                    Some(Ok(Message::Binary(bytes))) => {
                        assert_eq!(bytes[..], [0, 3]);
                        return script.exit(5).await;
                    }
                    Some(Ok(Message::Text(text))) => {
                        tell.send(Some(serde_json::from_str(&text).unwrap()))
                            .unwrap();
                    }
                    _ => return tell.send(None).unwrap(),
                }
            }
        }
    })
}

#[test]
fn raw_mode_is_undone_on_every_way_out() {
    // covers R54
    let (tell, mut told) = mpsc::unbounded_channel();
    let fake = listening(tell);
    let terminal = Terminal::new();

    // By the command's own end.
    let mut child = terminal.spawn(&fake, &["exec", "-it", "web", "sh"]);
    terminal.until("ready\r\n");
    assert!(terminal.is_raw());
    terminal.resize(40, 120);
    signal(&child, Signal::WINCH);
    let size = WindowSize {
        rows: 40,
        columns: 120,
    };
    assert_eq!(
        told.blocking_recv().unwrap(),
        Some(ClientMessage::Resize { size })
    );
    terminal.type_in(b"\x03");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(!terminal.is_raw());
    terminal.resize(30, 100);

    // By a terminal that hangs up, and by signals.
    for (kill, times, code) in [(Signal::HUP, 1, 129), (Signal::TERM, 3, 143)] {
        let mut child = terminal.spawn(&fake, &["exec", "-it", "web", "sh"]);
        terminal.until("ready\r\n");
        assert!(terminal.is_raw());
        for time in 1..=times {
            signal(&child, kill);
            if time < times {
                let message = told.blocking_recv().unwrap();
                assert_eq!(
                    message,
                    Some(ClientMessage::Signal {
                        signal: kill.as_raw()
                    })
                );
            }
        }
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(!terminal.is_raw());
        assert_eq!(told.blocking_recv().unwrap(), None);
    }
}

#[test]
fn a_session_that_breaks_undoes_raw_mode_too() {
    let fake = scripted(|mut script: Script| async move {
        script.request::<ExecRequest>().await;
        script.started().await;
        script.heard().await;
        script.write(1, b"ready\r\n").await;
    });
    let terminal = Terminal::new();
    let mut child = terminal.spawn(&fake, &["exec", "-it", "web", "sh"]);
    terminal.until("hint");
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(!terminal.is_raw());
}
