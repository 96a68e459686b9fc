//! A call on a terminal of its own, as a user at a keyboard has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::PATIENCE;
use crate::call::{Call, Running, contains};

/// A terminal and the call that runs on it.
pub struct Terminal {
    keyboard: File,
    /// Held so that the terminal outlives the call, and asked for its modes.
    line: OwnedFd,
    screen: Receiver<Vec<u8>>,
    shown: Vec<u8>,
    /// Up to where earlier waits have read.
    seen: usize,
}

impl Terminal {
    /// A new terminal of this size.
    ///
    /// # Panics
    /// When there is none to be had.
    #[must_use]
    pub fn new(rows: u16, columns: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
        let mut from = File::from(master.try_clone().unwrap());
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let terminal = Self {
            keyboard: File::from(master),
            line,
            screen,
            shown: Vec::new(),
            seen: 0,
        };
        terminal.resize(rows, columns);
        terminal
    }

    /// Starts a call with this terminal as its standard input and output, and as the controlling
    /// terminal of a session of its own.
    pub fn start(&self, call: Call) -> Running {
        let file = || Stdio::from(self.line.try_clone().unwrap());
        call.start_on(file(), file())
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` has appeared after whatever earlier waits found.
    ///
    /// # Panics
    /// When it does not appear.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if contains(&self.shown[self.seen..], text.as_bytes()) {
                let rest = &self.shown[self.seen..];
                let at = rest
                    .windows(text.len())
                    .position(|window| window == text.as_bytes());
                self.seen += at.unwrap_or(0) + text.len();
                return;
            }
            match self
                .screen
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(bytes) => self.shown.extend(bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => panic!(
                    "the terminal never showed {text:?}, but {:?}",
                    String::from_utf8_lossy(&self.shown)
                ),
            }
        }
    }

    /// Gives the window another size; whoever runs on the terminal gets SIGWINCH.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.line, size).unwrap();
    }

    /// The terminal's modes.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[must_use]
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.line).unwrap()
    }
}
