//! Calls about processes.

use std::io;
use std::sync::Arc;

use cowslip_proto::pb::{self, exec_event::Event};
use futures_util::stream::{self, StreamExt};
use tonic::{Status, Streaming};

use super::{BoxStream, Service};
use crate::process::{Follower, Process, Processes};

/// Highest signal number of Linux.
const MAX_SIGNAL: i32 = 64;

impl Service {
    pub(super) async fn do_exec(
        &self,
        request: pb::ExecRequest,
    ) -> Result<BoxStream<pb::ExecEvent>, Status> {
        let processes = self.0.processes.clone();
        // A task of its own: a caller that goes away must not leave a process half started.
        let started = tokio::spawn(async move { processes.start(request).await }).await;
        let started = started.map_err(|_| Status::internal("the agent gave up this call"))?;
        Ok(match started {
            Ok((process, follower)) => events(&process, follower),
            Err(failure) => {
                let failed = pb::StartFailed {
                    kind: failure.kind,
                    message: failure.message,
                };
                stream::iter([Ok(event(Event::StartFailed(failed)))]).boxed()
            }
        })
    }

    pub(super) fn do_attach(
        &self,
        request: &pb::AttachRequest,
    ) -> Result<BoxStream<pb::ExecEvent>, Status> {
        let process = self.find(&request.process)?;
        let follower = process.follow(request.offset).ok_or_else(|| {
            Status::resource_exhausted(format!("too many follow process \"{}\"", process.id))
        })?;
        Ok(events(&process, follower))
    }

    pub(super) async fn do_stdin(
        &self,
        mut chunks: Streaming<pb::StdinChunk>,
    ) -> Result<pb::StdinReply, Status> {
        let mut process: Option<Arc<Process>> = None;
        let mut accepted_bytes = 0;
        while let Some(chunk) = chunks.message().await? {
            let process = match &process {
                Some(known) => known,
                None => process.insert(self.find(&chunk.process)?),
            };
            let feed = async {
                let mut stdin = process.stdin.lock().await;
                if !stdin.is_open() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                stdin.write(&chunk.data).await?;
                if chunk.close {
                    stdin.close().await
                } else {
                    Ok(())
                }
            };
            let fed = tokio::select! {
                fed = feed => fed,
                () = process.ended() => Err(io::ErrorKind::BrokenPipe.into()),
            };
            fed.map_err(|_| {
                let message = format!("process \"{}\" takes no more input", process.id);
                Status::failed_precondition(message)
            })?;
            accepted_bytes += chunk.data.len() as u64;
        }
        Ok(pb::StdinReply { accepted_bytes })
    }

    pub(super) fn do_signal(&self, request: &pb::SignalRequest) -> Result<pb::SignalReply, Status> {
        let process = self.find(&request.process)?;
        let (signal, scope) = (request.signal, request.scope());
        let is_signal = (1..=MAX_SIGNAL).contains(&signal);
        if !is_signal || (scope == pb::SignalScope::Cgroup && signal != libc::SIGKILL) {
            return Err(Status::invalid_argument(format!(
                "cannot send signal {signal}"
            )));
        }
        match self.0.processes.signal(&process, signal, scope) {
            Ok(()) => Ok(pb::SignalReply {}),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Err(Status::not_found(format!(
                "process \"{}\" has ended",
                process.id
            ))),
            Err(e) => {
                let message = format!("cannot signal process \"{}\": {e}", process.id);
                Err(Status::failed_precondition(message))
            }
        }
    }

    pub(super) fn do_resize(&self, request: &pb::ResizeRequest) -> Result<pb::ResizeReply, Status> {
        let process = self.find(&request.process)?;
        let size = request.size.unwrap_or_default();
        Processes::resize(&process, size)
            .map(|()| pb::ResizeReply {})
            .map_err(|e| {
                let message = format!("cannot resize the terminal of \"{}\": {e}", process.id);
                Status::failed_precondition(message)
            })
    }

    fn find(&self, id: &str) -> Result<Arc<Process>, Status> {
        let message = || format!("no process \"{id}\" in the sandbox");
        self.0
            .processes
            .get(id)
            .ok_or_else(|| Status::not_found(message()))
    }
}

/// `started`, then whatever the follower sees.
fn events(process: &Process, follower: Follower) -> BoxStream<pb::ExecEvent> {
    let started = event(Event::Started(pb::Started { pid: process.pid }));
    let rest = stream::unfold(follower, async |mut follower| {
        let next = follower.next().await?;
        Some((Ok(event(next)), follower))
    });
    stream::iter([Ok(started)]).chain(rest).boxed()
}

fn event(event: Event) -> pb::ExecEvent {
    pb::ExecEvent { event: Some(event) }
}
