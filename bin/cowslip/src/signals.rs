//! Signals to this process, while a session is open.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// What the kernel told us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The window has a new size.
    Window,
    /// A signal with this number, meant for the command.
    Signal(i32),
}

/// The signals that are ours to handle; until this is made they have their usual effect.
#[derive(Debug)]
pub(crate) struct Signals {
    window: Signal,
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    /// Takes the signals over.
    pub(crate) fn take() -> Result<Self, Failure> {
        let one = |kind| {
            signal(kind).map_err(|error: io::Error| Failure::io("listen for signals", &error))
        };
        Ok(Self {
            window: one(SignalKind::window_change())?,
            hangup: one(SignalKind::hangup())?,
            interrupt: one(SignalKind::interrupt())?,
            quit: one(SignalKind::quit())?,
            terminate: one(SignalKind::terminate())?,
            user1: one(SignalKind::user_defined1())?,
            user2: one(SignalKind::user_defined2())?,
        })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Told {
        let number = |kind: SignalKind| Told::Signal(kind.as_raw_value());
        tokio::select! {
            _ = self.window.recv() => Told::Window,
            _ = self.hangup.recv() => number(SignalKind::hangup()),
            _ = self.interrupt.recv() => number(SignalKind::interrupt()),
            _ = self.quit.recv() => number(SignalKind::quit()),
            _ = self.terminate.recv() => number(SignalKind::terminate()),
            _ = self.user1.recv() => number(SignalKind::user_defined1()),
            _ = self.user2.recv() => number(SignalKind::user_defined2()),
        }
    }

    /// The next one that asks us to end: its number.
    pub(crate) async fn next_ending(&mut self) -> i32 {
        loop {
            match self.next().await {
                Told::Signal(number)
                    if number != SignalKind::user_defined1().as_raw_value()
                        && number != SignalKind::user_defined2().as_raw_value() =>
                {
                    return number;
                }
                _ => {}
            }
        }
    }
}

/// The exit code of a command that this signal ended.
pub(crate) fn exit_code(number: i32) -> u8 {
    u8::try_from(i32::from(cowslip_model::api::exit::SIGNAL_BASE).saturating_add(number))
        .unwrap_or(u8::MAX)
}
