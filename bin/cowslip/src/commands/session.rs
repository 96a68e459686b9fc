//! Follows a session: output out, input and signals in, until the command has ended.
//!
//! ```text
//!  opening ──Started──► following ──Exited──► closing ──closed──► exit code
//!     │ any signal          │ third signal       │ any signal
//!     ▼                     ▼                    ▼
//!  given up: 128 + N     given up: 128 + N    exit code at once
//! ```
//!
//! Giving up is dropping the connection: the engine sees it and cleans up. Only this file decides
//! which signals go where; the terminal is raw exactly while a process with a terminal runs.

mod input;
mod writer;

use bytes::Bytes;
use cowslip_model::api::{ClientMessage, ErrorCode, Sandbox, ServerMessage};
use rustix::process::Signal;
use serde::Serialize;
use tokio::sync::mpsc;

use self::input::Input;
use self::writer::{Room, Stream, Writer};
use super::Context;
use super::process::Attach;
use crate::client::{Incoming, Path, Said, Session};
use crate::exit::Failure;
use crate::output;
use crate::signals::{self, Signals, Told};
use crate::terminal::{self, RawMode};

/// So many signals to end are forwarded; the next one gives the session up.
const FORWARDED: u32 = 2;

/// What a session came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The command's exit code; none where it was left running, or there was none.
    pub(super) code: Option<u8>,
    /// The sandbox, where the session told.
    pub(super) sandbox: Option<Sandbox>,
}

/// What is wanted of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// How the user is attached.
    pub(super) attach: Attach,
    /// The session ends with the start of the command, not with its end.
    pub(super) detach: bool,
    /// Say on standard error how long each step took.
    pub(super) timings: bool,
}

/// Opens the session at `path` and follows it to its end.
pub(super) async fn follow(
    context: &Context,
    path: Path,
    request: &impl Serialize,
    wanted: Wanted,
) -> Result<Outcome, Failure> {
    let mut signals = Signals::take()?;
    let opened = tokio::select! {
        opened = context.client.session(path, request) => opened?,
        number = signals.next_ending() => return Err(Failure::silent(signals::exit_code(number))),
    };
    let Session { sender, incoming } = opened;
    let (control, input) = Input::new(sender);
    let follower = Follower {
        incoming,
        signals,
        wanted,
        control,
        writer: Writer::start(),
        pending: None,
        idle_input: Some(input),
        taken: None,
        raw: None,
        endings: 0,
        outcome: Outcome::default(),
    };
    follower.run().await
}

/// How following a session ended.
enum End {
    /// The engine has said its last word.
    Closed,
    /// The user wants no more of it; the exit code.
    GivenUp(u8),
}

/// What happened next.
enum Step {
    Told(Told),
    Room(Option<Room>),
    Said(Option<Said>),
}

struct Follower {
    incoming: Incoming,
    signals: Signals,
    wanted: Wanted,
    control: mpsc::Sender<ClientMessage>,
    writer: Writer,
    /// Output that the writer has no room for yet.
    pending: Option<(Stream, Bytes)>,
    /// Until the command has started.
    idle_input: Option<Input>,
    taken: Option<tokio::sync::watch::Sender<u64>>,
    raw: Option<RawMode>,
    endings: u32,
    outcome: Outcome,
}

impl Follower {
    async fn run(mut self) -> Result<Outcome, Failure> {
        let end = self.attend().await;
        if let Ok(End::GivenUp(code)) = end {
            return Err(Failure::silent(code));
        }
        let Self {
            writer,
            mut signals,
            raw,
            outcome,
            wanted,
            ..
        } = self;
        // However it ended: what the command has written is shown.
        tokio::select! {
            drained = writer.drained() => drained?,
            number = signals.next_ending() => {
                return Err(Failure::silent(signals::exit_code(number)));
            }
        }
        drop(raw);
        end?;
        if outcome.code.is_some() || wanted.detach {
            return Ok(outcome);
        }
        let message = "the engine closed the session before the command ended";
        Err(Failure::new(ErrorCode::Internal, message))
    }

    /// Follows the session until the engine closes it, it fails, or it is given up.
    async fn attend(&mut self) -> Result<End, Failure> {
        loop {
            let step = tokio::select! {
                biased;
                told = self.signals.next() => Step::Told(told),
                room = self.writer.room(), if self.pending.is_some() => Step::Room(room),
                said = self.incoming.next(), if self.pending.is_none() => Step::Said(said?),
            };
            match step {
                Step::Told(told) => {
                    if let Some(code) = self.told(told) {
                        return Ok(End::GivenUp(self.outcome.code.unwrap_or(code)));
                    }
                }
                Step::Room(Some(room)) => {
                    if let Some(piece) = self.pending.take() {
                        room.send(piece);
                    }
                }
                // Draining it tells why it stopped.
                Step::Room(None) => return Ok(End::Closed),
                Step::Said(Some(Said::Stdout(bytes))) => {
                    self.pending = Some((Stream::Stdout, bytes));
                }
                Step::Said(Some(Said::Stderr(bytes))) => {
                    self.pending = Some((Stream::Stderr, bytes));
                }
                Step::Said(Some(Said::Message(message))) => self.message(message)?,
                Step::Said(None) => return Ok(End::Closed),
            }
        }
    }

    /// Deals with a signal; gives an exit code where the session is to be given up.
    fn told(&mut self, told: Told) -> Option<u8> {
        let running = self.idle_input.is_none();
        match told {
            Told::Window => {
                if running && self.wanted.attach.tty {
                    self.say(ClientMessage::Resize {
                        size: terminal::size(),
                    });
                }
                None
            }
            Told::Signal(number) => {
                let hung_up = self.raw.is_some() && number == Signal::HUP.as_raw();
                if !running || self.outcome.code.is_some() || hung_up {
                    return Some(signals::exit_code(number));
                }
                self.endings += 1;
                if self.endings > FORWARDED {
                    return Some(signals::exit_code(number));
                }
                if self.endings == FORWARDED {
                    output::note("cowslip: once more gives the command up");
                }
                self.say(ClientMessage::Signal { signal: number });
                None
            }
        }
    }

    /// Queues a message about the session. A full queue means that the engine takes nothing at all,
    /// and one signal more or less is then no difference.
    fn say(&self, message: ClientMessage) {
        let _ = self.control.try_send(message);
    }

    fn message(&mut self, message: ServerMessage) -> Result<(), Failure> {
        match message {
            ServerMessage::Progress { step, took_us } => {
                if self.wanted.timings {
                    let (whole, rest) = (took_us / 1000, took_us % 1000);
                    output::note(&format!("{whole:>7}.{rest:03} ms  {step}"));
                }
            }
            ServerMessage::Sandbox { sandbox } => self.outcome.sandbox = Some(*sandbox),
            ServerMessage::Started { .. } => self.started()?,
            // Of builds, and of forwarded connections.
            ServerMessage::Destination { .. }
            | ServerMessage::Connected
            | ServerMessage::OutputEnd => {}
            ServerMessage::StdinTaken { bytes } => {
                if let Some(taken) = &self.taken {
                    taken.send_replace(bytes);
                }
            }
            ServerMessage::Exited { code } => {
                self.outcome.code = Some(u8::try_from(code & 0xff).unwrap_or(u8::MAX));
                self.raw = None;
            }
            ServerMessage::Failed { error } => return Err(Failure::from(error).of_command()),
        }
        Ok(())
    }

    fn started(&mut self) -> Result<(), Failure> {
        let Some(input) = self.idle_input.take() else {
            return Ok(());
        };
        if self.wanted.detach {
            return Ok(());
        }
        let attach = self.wanted.attach;
        if attach.raw() {
            self.raw = Some(RawMode::enter()?);
        }
        self.taken = Some(input.start(attach.interactive));
        if attach.tty {
            // It may have changed since the request was made.
            self.say(ClientMessage::Resize {
                size: terminal::size(),
            });
        }
        Ok(())
    }
}
