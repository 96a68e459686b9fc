//! `exec`: a process in a running guest, its streams tied to a session.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cowslip_ledger::{LedgerError, SandboxRecord};
use cowslip_model::ProcessId;
use cowslip_model::api::{ExecRequest, ServerMessage, WindowSize, exit};
use cowslip_proto::AgentClient;
use cowslip_proto::client::{
    ExecError, ExecEvent, ExecSession, ExecStart, ProcessControl, PtySize, StdinSink,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Engine;
use crate::error::EngineError;
use crate::guest::GuestError;
use crate::session::{ControlFrame, Incoming, ServerFrame, Session};
use crate::verbs::create::check_env;

/// SIGHUP: what a process gets whose terminal went away.
const SIGHUP: i32 = 1;

/// What a session came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended.
    Exited(i32),
    /// The client went away; the process may run on.
    ClientGone,
}

/// The agent's name of a process.
pub(crate) fn agent_id(process: ProcessId) -> String {
    format!("p{process}")
}

impl Engine {
    /// Runs a process in a sandbox; everything, failures too, goes to the session.
    pub async fn exec(self: &Arc<Self>, reference: &str, request: ExecRequest, session: Session) {
        let outcome = async {
            let (record, agent) = self.agent_of(reference, "run a command in").await?;
            let (process, started) = start_process(&record, &agent, &request).await?;
            if !session.send(ServerMessage::Started { process }).await || request.detach {
                return Ok(None);
            }
            Ok::<_, EngineError>(Some((record, started)))
        };
        let (record, started) = match outcome.await {
            Ok(Some(started)) => started,
            Ok(None) => return,
            Err(error) => {
                session
                    .send(ServerMessage::Failed {
                        error: error.body(),
                    })
                    .await;
                return;
            }
        };
        let Session { incoming, outgoing } = session;
        let pump = Pump {
            sandbox: &record,
            outgoing: &outgoing,
            terminal: request.terminal.is_some(),
        };
        let deadline = request
            .timeout
            .map(|limit| Instant::now() + limit.duration());
        let last = match pump.run(started, incoming, deadline, |_| {}).await {
            Ok(Outcome::Exited(code)) => ServerMessage::Exited { code },
            Ok(Outcome::ClientGone) => return,
            Err(error) => ServerMessage::Failed {
                error: error.body(),
            },
        };
        let _ = outgoing.send(ServerFrame::Message(last)).await;
    }
}

/// Starts a process as the request and the sandbox's defaults say.
pub(crate) async fn start_process(
    record: &SandboxRecord,
    agent: &AgentClient,
    request: &ExecRequest,
) -> Result<(ProcessId, ExecSession), EngineError> {
    let process = ProcessId::random().map_err(LedgerError::from)?;
    let command = request.argv.first().cloned().unwrap_or_default();
    if command.is_empty() || request.argv.iter().any(|word| word.contains('\0')) {
        return Err(EngineError::Invalid(
            "the command is empty, or a word of it has a NUL".to_owned(),
        ));
    }
    check_env(&request.env)?;
    let start = ExecStart {
        process: agent_id(process),
        argv: request
            .argv
            .iter()
            .map(|word| word.clone().into_bytes())
            .collect(),
        env: to_bytes(&request.env),
        cwd: request
            .workdir
            .clone()
            .or_else(|| record.spec.workdir.clone())
            .map(String::into_bytes),
        user: request.user.clone().or_else(|| record.spec.user.clone()),
        pty: request.terminal.map(pty_size),
        stdin: request.stdin,
    };
    match agent.exec(start).await {
        Ok(session) => Ok((process, session)),
        Err(ExecError::Call(source)) => Err(GuestError::Call {
            operation: "start a process",
            sandbox: record.id,
            source,
        }
        .into()),
        Err(error) => {
            let text = error.to_string();
            Err(match error.exit_code() {
                exit::NOT_FOUND => EngineError::CommandNotFound(text),
                exit::NOT_EXECUTABLE => EngineError::CommandNotExecutable(text),
                _ => EngineError::Invalid(text),
            })
        }
    }
}

fn to_bytes(env: &BTreeMap<String, String>) -> Vec<(Vec<u8>, Vec<u8>)> {
    env.iter()
        .map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes()))
        .collect()
}

fn pty_size(size: WindowSize) -> PtySize {
    PtySize {
        rows: size.rows,
        cols: size.columns,
    }
}

/// Carries a process's streams to and from a session.
pub(crate) struct Pump<'a> {
    pub(crate) sandbox: &'a SandboxRecord,
    pub(crate) outgoing: &'a mpsc::Sender<ServerFrame>,
    pub(crate) terminal: bool,
}

impl Pump<'_> {
    /// Until the process has ended and all its output is sent, or the client is gone. `tee` sees
    /// the output too.
    pub(crate) async fn run(
        &self,
        started: ExecSession,
        incoming: Incoming,
        deadline: Option<Instant>,
        tee: impl FnMut(&Bytes),
    ) -> Result<Outcome, EngineError> {
        let ExecSession {
            stdin,
            events,
            control,
            ..
        } = started;
        let input = tokio::spawn(feed(stdin, control.clone(), incoming));
        let outcome = self.events(events, &control, deadline, tee).await;
        input.abort();
        if matches!(outcome, Ok(Outcome::ClientGone)) && self.terminal {
            // As when a terminal is closed. The process may have ended by now.
            let _ = control.signal(SIGHUP).await;
        }
        outcome
    }

    async fn events(
        &self,
        mut events: cowslip_proto::client::ExecEvents,
        control: &ProcessControl,
        deadline: Option<Instant>,
        mut tee: impl FnMut(&Bytes),
    ) -> Result<Outcome, EngineError> {
        let failed = |source| {
            EngineError::from(GuestError::Call {
                operation: "follow a process",
                sandbox: self.sandbox.id,
                source,
            })
        };
        let mut deadline = deadline;
        let mut timed_out = false;
        loop {
            let event = tokio::select! {
                event = events.next() => event.map_err(failed)?,
                () = self.outgoing.closed() => return Ok(Outcome::ClientGone),
                () = until(deadline) => {
                    deadline = None;
                    timed_out = true;
                    control.kill_all().await.map_err(failed)?;
                    continue;
                }
            };
            let frame = match event {
                Some(ExecEvent::Stdout(bytes)) => {
                    tee(&bytes);
                    ServerFrame::Stdout(bytes)
                }
                Some(ExecEvent::Stderr(bytes)) => {
                    tee(&bytes);
                    ServerFrame::Stderr(bytes)
                }
                Some(ExecEvent::Skipped(_)) => continue,
                Some(ExecEvent::Exited(_)) if timed_out => {
                    return Ok(Outcome::Exited(exit::TIMED_OUT.into()));
                }
                Some(ExecEvent::Exited(status)) => {
                    return Ok(Outcome::Exited(status.shell_code().into()));
                }
                None => {
                    return Err(EngineError::Internal(
                        "a process ended without a status".to_owned(),
                    ));
                }
            };
            if self.outgoing.send(frame).await.is_err() {
                return Ok(Outcome::ClientGone);
            }
        }
    }
}

/// Resolves at the deadline; never without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Feeds what the client sends to the process.
async fn feed(mut stdin: StdinSink, control: ProcessControl, incoming: Incoming) {
    let Incoming {
        mut input,
        control: mut frames,
    } = incoming;
    let writer = async move {
        while let Some(bytes) = input.recv().await {
            // A process that does not read any more is no failure of the session.
            if stdin.write(bytes).await.is_err() {
                return;
            }
        }
        let _ = stdin.close().await;
    };
    let controller = async move {
        while let Some(frame) = frames.recv().await {
            let outcome = match frame {
                ControlFrame::Resize(size) => control.resize(pty_size(size)).await,
                ControlFrame::Signal(signal) => control.signal(signal).await,
                // Of forwarded connections only.
                ControlFrame::Taken(_) => Ok(()),
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "a process did not take what its client sent");
            }
        }
    };
    tokio::join!(writer, controller);
}
