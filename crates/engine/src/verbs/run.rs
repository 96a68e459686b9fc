//! `run`: create, start and exec in one session.
//!
//! Until the main process has started, a client that goes away takes everything with it (R34). From
//! then on it depends on the request: `remove` removes the sandbox when the process ends or the client
//! goes; else the sandbox stays, stopped when its main process has ended unless `keep` is set.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cowslip_host::BoundedLog;
use cowslip_ledger::{MainProcess, SandboxRecord, Synchronous};
use cowslip_model::SandboxId;
use cowslip_model::api::{ExecRequest, RunRequest, ServerMessage};
use cowslip_proto::client::{ExecEvent, ExecEvents, ExecSession};

use crate::error::EngineError;
use crate::live::Live;
use crate::session::Session;
use crate::verbs::checkpoint::micros;
use crate::verbs::exec::{Outcome, Pump, agent_id, start_process};
use crate::verbs::logs::MAIN_LOG;
use crate::{Engine, to_the_end};

/// What processes get to end when their sandbox's main process has ended.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

impl Engine {
    /// Runs a command in a new sandbox; everything, failures too, goes to the session.
    pub async fn run(self: &Arc<Self>, request: RunRequest, session: Session) {
        let engine = Arc::clone(self);
        let outgoing = session.outgoing.clone();
        let outcome = to_the_end(async move { engine.run_in(request, session).await }).await;
        Session::end(&outgoing, outcome).await;
    }

    async fn run_in(
        self: &Arc<Self>,
        request: RunRequest,
        session: Session,
    ) -> Result<Option<i32>, EngineError> {
        let begun = Instant::now();
        let exec = self.main_process(&request)?;
        let record = self.create_record(request.sandbox, request.remove).await?;
        let id = record.id;
        progress(&session, "created", begun).await;
        match self.bring_up(&record, exec, request.keep, &session).await {
            Ok(Up::Process(started, exec)) => {
                self.follow_session(id, *started, exec, session).await
            }
            Ok(Up::Idle) => Ok(None),
            Ok(Up::ClientGone) => {
                let _busy = self.lock(id).await;
                self.remove_locked(id).await.map(|()| None)
            }
            Err(error) => {
                let _busy = self.lock(id).await;
                Err(error.and_rollback(self.remove_locked(id).await))
            }
        }
    }

    /// What is to be run, with the words that the template's image has for it. In the background it may be
    /// nothing.
    fn main_process(&self, request: &RunRequest) -> Result<Option<ExecRequest>, EngineError> {
        let Some(exec) = &request.exec else {
            return Ok(None);
        };
        let reference = &request.sandbox.template;
        let image = self.find_template(reference)?.config.unwrap_or_default();
        let argv = image.command(request.entrypoint.clone(), exec.argv.clone());
        if argv.is_empty() && exec.detach {
            return Ok(None);
        }
        if argv.is_empty() {
            return Err(EngineError::NoCommand {
                template: reference.clone(),
            });
        }
        Ok(Some(ExecRequest {
            argv,
            ..exec.clone()
        }))
    }

    /// Starts the sandbox and its main process.
    async fn bring_up(
        self: &Arc<Self>,
        record: &SandboxRecord,
        exec: Option<ExecRequest>,
        keep: bool,
        session: &Session,
    ) -> Result<Up, EngineError> {
        let id = record.id;
        let begun = Instant::now();
        let started = {
            let _busy = self.lock(id).await;
            let start = self.start_locked(id);
            tokio::pin!(start);
            tokio::select! {
                started = &mut start => started,
                () = session.gone() => {
                    // It unwinds itself, wherever it is; one that got further is undone by the caller.
                    self.boots.call_off(id);
                    let _ = start.await;
                    self.boots.forget(id);
                    return Ok(Up::ClientGone);
                }
            }
        };
        let (record, times) = started?;
        let monitor = micros(times.monitor);
        let guest = micros(times.guest);
        for (step, took_us) in [("monitor", monitor), ("guest", guest)] {
            session
                .send(ServerMessage::Progress {
                    step: step.to_owned(),
                    took_us,
                })
                .await;
        }
        progress(session, "started", begun).await;
        let sandbox = Box::new(self.view_sandbox(&record)?);
        if !session.send(ServerMessage::Sandbox { sandbox }).await {
            return Ok(Up::ClientGone);
        }
        let Some(exec) = exec else {
            return Ok(Up::Idle);
        };
        let live = self.live(&record)?;
        let agent = self.agent(&record, &live).await?;
        let (process, started) = start_process(&record, &agent, &exec).await?;
        self.change(
            id,
            "run: main process",
            Synchronous::Normal,
            |sandbox, _| {
                sandbox.main = Some(MainProcess {
                    process,
                    argv: exec.argv.clone(),
                    exit_code: None,
                    keep,
                });
                Ok(None)
            },
        )?;
        session.send(ServerMessage::Started { process }).await;
        Ok(Up::Process(Box::new(started), exec))
    }

    /// Carries the main process's streams, and settles the sandbox when it is over.
    async fn follow_session(
        self: &Arc<Self>,
        id: SandboxId,
        started: ExecSession,
        exec: ExecRequest,
        session: Session,
    ) -> Result<Option<i32>, EngineError> {
        let record = self.site.ledger.read(|tx| tx.sandbox(id))?;
        let Some(record) = record else {
            return Ok(None);
        };
        let mut log = MainLog::open(self, id);
        if exec.detach {
            drop(started.stdin);
            self.follow_main(id, started.events, log);
            return Ok(None);
        }
        let deadline = exec
            .timeout
            .map(|limit| tokio::time::Instant::now() + limit.duration());
        let Session { incoming, outgoing } = session;
        let pump = Pump {
            sandbox: &record,
            outgoing: &outgoing,
            terminal: exec.terminal.is_some(),
        };
        match pump
            .run(started, incoming, deadline, |bytes| log.append(bytes))
            .await
        {
            Ok(Outcome::Exited(code)) => {
                self.main_ended(id, code).await?;
                Ok(Some(code))
            }
            Ok(Outcome::ClientGone) if record.auto_remove => {
                let _busy = self.lock(id).await;
                self.remove_locked(id).await.map(|()| None)
            }
            Ok(Outcome::ClientGone) => {
                if let Some(live) = self.live.get(id) {
                    self.follow_main_again(&record, &live);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Follows a main process without a client: its output goes to the log.
    fn follow_main(self: &Arc<Self>, id: SandboxId, mut events: ExecEvents, mut log: MainLog) {
        let engine = Arc::downgrade(self);
        tokio::spawn(async move {
            let code = loop {
                match events.next().await {
                    Ok(Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes))) => {
                        log.append(&bytes)
                    }
                    Ok(Some(ExecEvent::Skipped(_))) => {}
                    Ok(Some(ExecEvent::Exited(status))) => break i32::from(status.shell_code()),
                    // The machine ended, paused or is followed by another connection.
                    Ok(None) | Err(_) => return,
                }
            };
            let Some(engine) = engine.upgrade() else {
                return;
            };
            if let Err(error) = engine.main_ended(id, code).await {
                tracing::error!(sandbox = %id, %error, "settle a sandbox whose main process ended");
            }
        });
    }

    /// Follows the main process of a machine that was adopted, resumed or forked.
    pub(crate) fn follow_main_again(self: &Arc<Self>, record: &SandboxRecord, live: &Arc<Live>) {
        let Some(main) = record.main.clone().filter(|main| main.exit_code.is_none()) else {
            return;
        };
        let (engine, live, record) = (Arc::clone(self), Arc::clone(live), record.clone());
        let log = MainLog::open(self, record.id);
        tokio::spawn(async move {
            let id = record.id;
            let agent = match engine.agent(&record, &live).await {
                Ok(agent) => agent,
                Err(error) => {
                    tracing::warn!(sandbox = %id, %error, "the main process cannot be followed");
                    return;
                }
            };
            // What is in the log need not be sent again.
            match agent.attach(&agent_id(main.process), log.length()).await {
                Ok(session) => {
                    drop(session.stdin);
                    engine.follow_main(id, session.events, log);
                }
                Err(error) => {
                    tracing::warn!(sandbox = %id, %error, "the main process cannot be followed");
                }
            }
        });
    }

    /// Records how the main process ended, and stops or removes the sandbox as it was asked to.
    async fn main_ended(self: &Arc<Self>, id: SandboxId, code: i32) -> Result<(), EngineError> {
        let _busy = self.lock(id).await;
        let record = match self.change(id, "run: main ended", Synchronous::Normal, |sandbox, tx| {
            if let Some(main) = &mut sandbox.main {
                main.exit_code = Some(code);
            }
            let detail = serde_json::json!({ "exit_code": code });
            tx.emit("sandbox.exited", id, Some(&sandbox.name), detail)
                .map(Some)
        }) {
            Ok(record) => record,
            // Removed while its process ended.
            Err(EngineError::Ledger(cowslip_ledger::LedgerError::Missing(_))) => return Ok(()),
            Err(error) => return Err(error),
        };
        if record.auto_remove {
            return self.remove_locked(id).await;
        }
        let keep = record.main.is_some_and(|main| main.keep);
        if !keep && record.state == cowslip_model::SandboxState::Running {
            self.stop_locked(id, GRACE).await?;
        }
        Ok(())
    }
}

/// How far a `run` came up.
enum Up {
    /// Its main process runs.
    Process(Box<ExecSession>, ExecRequest),
    /// It has none.
    Idle,
    /// Nobody waits for it any more.
    ClientGone,
}

async fn progress(session: &Session, step: &str, begun: Instant) {
    let message = ServerMessage::Progress {
        step: step.to_owned(),
        took_us: micros(begun.elapsed()),
    };
    session.send(message).await;
}

/// The log of a main process. A log that cannot be written loses lines, not the sandbox.
struct MainLog(Option<BoundedLog>);

impl MainLog {
    fn open(engine: &Engine, id: SandboxId) -> Self {
        let path = engine.site.layout.sandbox(id).join(MAIN_LOG);
        let log = BoundedLog::open(&path, engine.config.machine.log_bound.bytes());
        Self(
            log.inspect_err(|error| tracing::warn!(%error, "open the main log"))
                .ok(),
        )
    }

    fn length(&self) -> u64 {
        self.0.as_ref().map_or(0, BoundedLog::len)
    }

    fn append(&mut self, bytes: &Bytes) {
        if let Some(log) = &mut self.0
            && let Err(error) = log.append(bytes)
        {
            tracing::warn!(%error, "write the main log; it ends here");
            self.0 = None;
        }
    }
}
