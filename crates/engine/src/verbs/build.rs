//! `template build`, one step of it: a new sandbox on a disk, something done in it, its disk as a checkpoint.
//!
//! ```text
//!   template ┐                                                  ┌ done: power off ─ freeze ─ publish ─ remove
//!   step     ┴─ new layer ─ boot ─ directories ─ run or unpack ─┴ failed: remove, or left to be looked at
//! ```
//!
//! Until the end the sandbox is one that is being made: whatever becomes of the client or of this engine,
//! recovery removes it (R34). What a step leaves is a layer and a name for it; nothing is copied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_host::DirectorySpec;
use cowslip_ledger::{
    CheckpointRecord, LayerRecord, LedgerError, Owner, SandboxRecord, Synchronous,
};
use cowslip_model::api::{BuildAction, BuildBase, BuildStepRequest, CreateRequest, ServerMessage};
use cowslip_model::{ByteSize, CheckpointId, LayerId, SandboxSpec, Timestamp};
use cowslip_proto::pb::FileKind;
use cowslip_proto::{AgentClient, CallError};

use crate::error::EngineError;
use crate::guest::GuestError;
use crate::session::Session;
use crate::verbs::archive::body_of;
use crate::verbs::boot::{Origin, Started};
use crate::verbs::checkpoint::micros;
use crate::verbs::exec::{Outcome, Pump, start_process};
use crate::verbs::rebuild::{self, RECORD};
use crate::{Engine, blocking, to_the_end};

/// Room that a build has beyond its template, in bytes, unless it asks for another. Only what is written counts
/// on the host.
const ROOM: u64 = 4 << 30;
/// What processes get to end after a step's command.
const GRACE: Duration = Duration::from_secs(5);

/// What a step came to.
enum Step {
    /// Its disk is what it was to be.
    Done,
    /// Its command ended with this code; the machine, if it is to be kept.
    Failed(i32, Option<Box<Started>>),
    /// Nobody waits for it any more.
    ClientGone,
}

impl Engine {
    /// Takes one step of a build; everything, failures too, goes to the session. With exit code 0 the
    /// checkpoint is there.
    pub async fn build_step(self: &Arc<Self>, request: BuildStepRequest, session: Session) {
        let engine = Arc::clone(self);
        let outgoing = session.outgoing.clone();
        let outcome = to_the_end(async move { engine.build_step_in(request, session).await }).await;
        Session::end(&outgoing, outcome).await;
    }

    async fn build_step_in(
        self: &Arc<Self>,
        request: BuildStepRequest,
        session: Session,
    ) -> Result<Option<i32>, EngineError> {
        let (spec, base) = self.base_of_step(&request).await?;
        let below = match &base {
            Some(base) => Some(
                self.site
                    .ledger
                    .read(|tx| tx.layer(base.layer))?
                    .ok_or_else(|| LedgerError::Missing(format!("layer {}", base.layer)))?,
            ),
            None => None,
        };
        let template = spec.template;
        let top = LayerRecord {
            id: LayerId::random().map_err(LedgerError::from)?,
            template,
            parent: below
                .as_ref()
                .and_then(|layer| self.parent_of_new_top(layer)),
            format: match &below {
                Some(below) => self.volumes.format_over(below.format),
                None => self.volumes.format(),
            },
            size: spec.resources.disk,
            frozen: false,
            created_at: Timestamp::now(),
        };
        let mut record = self.record_new(None, spec, false, top.id)?;
        record.generation = base.as_ref().map_or(1, |base| base.generation + 1);
        let _busy = self.lock(record.id).await;
        let record = self.begin_creation(record, &top, |tx| {
            let Some(base) = &base else { return Ok(()) };
            // It may have been removed since it was looked up; from here on its layer is held.
            match tx.checkpoint(base.id)? {
                Some(found) if found.ready => Ok(()),
                _ => Err(EngineError::NotFound {
                    kind: "checkpoint",
                    reference: base.name.to_string(),
                    near: Vec::new(),
                }),
            }
        })?;
        let id = record.id;
        let step = async {
            self.make_volume(&record, &top, below.as_ref()).await?;
            let step = self.take_step(&record, &top, &request, session).await?;
            if let Step::Done = step {
                self.seal_step(&self.current(id)?, &request).await?;
            }
            Ok(step)
        };
        match step.await {
            Ok(Step::Failed(code, Some(started))) => {
                match self.publish_running(id, "build: keep", *started, |_| ()) {
                    Ok(_) => Ok(Some(code)),
                    Err(error) => Err(error.and_rollback(self.remove_locked(id).await)),
                }
            }
            Ok(step) => {
                self.remove_locked(id).await?;
                Ok(match step {
                    Step::Done => Some(0),
                    Step::Failed(code, _) => Some(code),
                    Step::ClientGone => None,
                })
            }
            Err(error) => {
                let error: EngineError = error;
                Err(error.and_rollback(self.remove_locked(id).await))
            }
        }
    }

    /// What the sandbox of a step is made of, and the checkpoint that it stands on.
    async fn base_of_step(
        &self,
        request: &BuildStepRequest,
    ) -> Result<(SandboxSpec, Option<CheckpointRecord>), EngineError> {
        let of_template = async |reference: &str, disk: Option<ByteSize>| {
            let template = self.find_template(reference)?;
            let create = CreateRequest {
                template: reference.to_owned(),
                kernel: request.kernel.clone(),
                cpus: request.cpus,
                memory: request.memory,
                disk: disk.or(Some(ByteSize(template.size.bytes() + ROOM))),
                ..CreateRequest::default()
            };
            let mut spec = self.spec_of(&create, &template).await?;
            spec.ttl = None;
            Ok::<_, EngineError>(spec)
        };
        match &request.base {
            BuildBase::Template(reference) => {
                Ok((of_template(reference, request.disk).await?, None))
            }
            BuildBase::Checkpoint(reference) => {
                let checkpoint = self.find_checkpoint(reference)?;
                self.refuse_changed(&checkpoint)?;
                // Its disk has the size that it has; all else is as this step asks.
                let template = checkpoint.spec.template.to_string();
                let spec = of_template(&template, Some(checkpoint.spec.resources.disk)).await?;
                Ok((spec, Some(checkpoint)))
            }
        }
    }

    /// Boots the sandbox, does what is to be done and shuts it down.
    async fn take_step(
        self: &Arc<Self>,
        record: &SandboxRecord,
        top: &LayerRecord,
        request: &BuildStepRequest,
        session: Session,
    ) -> Result<Step, EngineError> {
        if matches!(request.action, BuildAction::Nothing) && request.directories.is_empty() {
            return Ok(Step::Done);
        }
        let begun = Instant::now();
        let started = {
            let start = self.start_machine(record, top.id, Origin::Kernel);
            tokio::pin!(start);
            tokio::select! {
                started = &mut start => started?,
                () = session.gone() => {
                    // Ends the wait for the agent; the caller undoes what got further.
                    self.boots.call_off(record.id);
                    let _ = start.await;
                    self.boots.forget(record.id);
                    return Ok(Step::ClientGone);
                }
            }
        };
        let took_us = micros(begun.elapsed());
        let step = "started".to_owned();
        session
            .send(ServerMessage::Progress { step, took_us })
            .await;
        let sandbox = Box::new(self.view_sandbox(record)?);
        if !session.send(ServerMessage::Sandbox { sandbox }).await {
            return Ok(Step::ClientGone);
        }
        // `rm --force` need not wait for a command that never ends.
        let called_off = self.boots.begin(record.id);
        let acted = tokio::select! {
            acted = self.act(record, &started, request, session) => acted,
            () = called_off.cancelled() => Err(EngineError::CalledOff {
                name: record.name.clone(),
            }),
        };
        self.boots.end(record.id);
        match acted? {
            Outcome::ClientGone => Ok(Step::ClientGone),
            Outcome::Exited(0) => {
                // A guest that does not power off in time is killed: by then everything is on its disk.
                self.guest(record, &started.live).await?.sync().await?;
                self.live.insert(record.id, Arc::clone(&started.live));
                self.shut_down(record, GRACE).await;
                self.end_machine(record.id).await?;
                self.sync_disk(&self.current(record.id)?).await?;
                Ok(Step::Done)
            }
            Outcome::Exited(code) => {
                let kept = request.keep_failed.then(|| Box::new(started));
                Ok(Step::Failed(code, kept))
            }
        }
    }

    async fn act(
        &self,
        record: &SandboxRecord,
        started: &Started,
        request: &BuildStepRequest,
        session: Session,
    ) -> Result<Outcome, EngineError> {
        let agent = self.agent(record, &started.live).await?;
        let failed = |operation| {
            move |source| {
                EngineError::from(GuestError::Call {
                    operation,
                    sandbox: record.id,
                    source,
                })
            }
        };
        for directory in &request.directories {
            let made = agent.make_dir(Path::new(directory), true, 0o755, None);
            made.await.map_err(failed("make a directory"))?;
        }
        match &request.action {
            BuildAction::Nothing => Ok(Outcome::Exited(0)),
            BuildAction::Run(exec) => {
                let (process, running) = start_process(record, &agent, exec).await?;
                session.send(ServerMessage::Started { process }).await;
                let Session { incoming, outgoing } = session;
                let pump = Pump {
                    sandbox: record,
                    outgoing: &outgoing,
                    terminal: false,
                };
                pump.run(running, incoming, None, |_| ()).await
            }
            BuildAction::Unpack {
                directory,
                name,
                owner,
                entries,
            } => {
                // Where it is missing it is made, and belongs to whoever the files do.
                let path = Path::new(directory);
                let made = agent.make_dir(path, true, 0o755, owner.as_deref()).await;
                made.map_err(failed("make a directory"))?;
                let into = destination(&agent, directory, name.as_deref()).await;
                let (into, is_directory) = into.map_err(failed("look at the destination"))?;
                session
                    .send(ServerMessage::Destination { is_directory })
                    .await;
                let process = cowslip_model::ProcessId::random().map_err(LedgerError::from)?;
                // As for a command: from here on the input is read.
                session.send(ServerMessage::Started { process }).await;
                let Session { incoming, outgoing } = session;
                let body = body_of(incoming.input);
                let written = agent.write_tar(&into, owner.as_deref(), body);
                let written = tokio::select! {
                    written = written => written.map_err(failed("write files"))?,
                    () = outgoing.closed() => return Ok(Outcome::ClientGone),
                };
                match written == *entries {
                    true => Ok(Outcome::Exited(0)),
                    false => Err(EngineError::Invalid(format!(
                        "{written} of {entries} files came: the client gave them up"
                    ))),
                }
            }
        }
    }

    /// Makes the disk of a sandbox that has no machine any more a checkpoint. The layer is both's, until the
    /// sandbox goes.
    async fn seal_step(
        &self,
        sandbox: &SandboxRecord,
        request: &BuildStepRequest,
    ) -> Result<(), EngineError> {
        let id = CheckpointId::random().map_err(LedgerError::from)?;
        let _making = self.making(Owner::Checkpoint(id));
        let sealed = async {
            let path = self.site.layout.checkpoint(id);
            let spec = DirectorySpec {
                path: path.clone(),
                mode: 0o700,
            };
            self.make_directory(Owner::Checkpoint(id), spec).await?;
            let record = self.record_of_step(id, sandbox, request).await?;
            let layers = self.site.ledger.read(|tx| tx.chain(record.layer))?;
            let text = rebuild::encode(&rebuild::CheckpointFile {
                record: record.clone(),
                layers,
            })?;
            let host = Arc::clone(&self.site.host);
            blocking(move || host.publish(&path.join(RECORD), &text)).await??;
            self.discard_left_over(&record.name, sandbox.id).await?;
            let event = self
                .site
                .ledger
                .write("build: publish", Synchronous::Full, |tx| {
                    match tx.checkpoint_named(&record.name)? {
                        // Another build has taken the same step meanwhile: that one is it.
                        Some(other) if other.ready && other.disk_only => return Ok(None),
                        Some(_) => {
                            return Err(EngineError::Exists {
                                kind: "checkpoint",
                                name: record.name.clone(),
                            });
                        }
                        None => {}
                    }
                    if let Some(mut layer) = tx.layer(record.layer)? {
                        layer.frozen = true;
                        tx.put_layer(&layer)?;
                    }
                    tx.put_checkpoint(&record)?;
                    let detail = serde_json::json!({ "disk_only": true });
                    let event =
                        tx.emit("checkpoint.created", record.id, Some(&record.name), detail)?;
                    Ok(Some(event))
                })?;
            Ok(event)
        };
        match sealed.await {
            Ok(Some(event)) => {
                self.announce(event);
                Ok(())
            }
            Ok(None) => self.discard_checkpoint(id).await,
            Err(error) => {
                let error: EngineError = error;
                Err(error.and_rollback(self.discard_checkpoint(id).await))
            }
        }
    }

    async fn record_of_step(
        &self,
        id: CheckpointId,
        sandbox: &SandboxRecord,
        request: &BuildStepRequest,
    ) -> Result<CheckpointRecord, EngineError> {
        let monitor = match &sandbox.monitor {
            Some(monitor) => monitor.clone(),
            None => self.monitor_of(sandbox).await?.info(),
        };
        let (template, kernel) = self.site.ledger.read(|tx| {
            let template = tx.template(sandbox.spec.template)?;
            Ok::<_, EngineError>((template, tx.kernel(sandbox.spec.kernel)?))
        })?;
        Ok(CheckpointRecord {
            id,
            name: request.name.clone(),
            sandbox: sandbox.id,
            sandbox_name: sandbox.name.clone(),
            spec: sandbox.spec.clone(),
            main: None,
            layer: self.top_of(sandbox)?,
            generation: sandbox.generation,
            monitor,
            template_digest: template.map(|found| found.digest),
            kernel_digest: kernel.map(|found| found.digest),
            disk_only: true,
            memory_bytes: ByteSize(0),
            memory_chain: 0,
            whole_since: None,
            downtime_us: 0,
            publication_us: 0,
            ready: true,
            created_at: Timestamp::now(),
        })
    }
}

/// Where files go, and whether that is a directory which stands where the one file was to be.
async fn destination(
    agent: &AgentClient,
    directory: &str,
    name: Option<&str>,
) -> Result<(PathBuf, bool), CallError> {
    let directory = PathBuf::from(directory);
    let Some(name) = name else {
        return Ok((directory, false));
    };
    let there = directory.join(name);
    match agent.stat(&there, true).await {
        Ok(found) if found.kind() == FileKind::Directory => Ok((there, true)),
        // Another file, which is replaced, or a link that leads nowhere.
        Ok(_) | Err(CallError::NotFound { .. }) => Ok((directory, false)),
        Err(error) => Err(error),
    }
}
