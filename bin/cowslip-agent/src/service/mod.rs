//! The agent's gRPC service: takes requests apart and hands them to whoever knows.

mod bytes_io;
mod exec;
mod files;
mod forward;
mod machine;

use std::pin::Pin;
use std::sync::Arc;

use cowslip_proto::pb::{self, AgentMode, agent_server::Agent};
use futures_util::Stream;
use tokio::sync::{Notify, Semaphore};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::machine::identity::Identity;
use crate::process::Processes;
use crate::process::reaper::Children;

type Reply<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mode: AgentMode,
    pub(crate) boot_phases: Vec<pb::BootPhase>,
    pub(crate) children: Arc<Children>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) identity: Identity,
    /// Places of connections that may still be forwarded.
    pub(crate) forwards: Arc<Semaphore>,
    /// Told when only the power remains to be cut.
    pub(crate) power_off: Notify,
}

/// The service of one connection; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

impl Service {
    /// Refuses what would change the machine when it is not ours.
    fn owns_machine(&self) -> Result<(), Status> {
        match self.0.mode {
            AgentMode::Process => Err(Status::failed_precondition(
                "this agent does not own its machine",
            )),
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn hello(&self, _: Request<pb::HelloRequest>) -> Reply<pb::HelloReply> {
        Ok(Response::new(self.do_hello()))
    }

    async fn configure(&self, request: Request<pb::ConfigureRequest>) -> Reply<pb::ConfigureReply> {
        self.do_configure(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn restored(&self, request: Request<pb::RestoredRequest>) -> Reply<pb::RestoredReply> {
        self.do_restored(request.into_inner()).map(Response::new)
    }

    async fn clock(&self, request: Request<pb::ClockRequest>) -> Reply<pb::ClockReply> {
        self.do_clock(request.into_inner()).map(Response::new)
    }

    async fn sync(&self, _: Request<pb::SyncRequest>) -> Reply<pb::SyncReply> {
        self.do_sync().await.map(Response::new)
    }

    async fn shutdown(&self, request: Request<pb::ShutdownRequest>) -> Reply<pb::ShutdownReply> {
        self.do_shutdown(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn metrics(&self, _: Request<pb::MetricsRequest>) -> Reply<pb::MetricsReply> {
        self.do_metrics().await.map(Response::new)
    }

    type ExecStream = BoxStream<pb::ExecEvent>;
    async fn exec(&self, request: Request<pb::ExecRequest>) -> Reply<Self::ExecStream> {
        self.do_exec(request.into_inner()).await.map(Response::new)
    }

    type AttachStream = BoxStream<pb::ExecEvent>;
    async fn attach(&self, request: Request<pb::AttachRequest>) -> Reply<Self::AttachStream> {
        self.do_attach(&request.into_inner()).map(Response::new)
    }

    async fn stdin(&self, request: Request<Streaming<pb::StdinChunk>>) -> Reply<pb::StdinReply> {
        self.do_stdin(request.into_inner()).await.map(Response::new)
    }

    async fn signal(&self, request: Request<pb::SignalRequest>) -> Reply<pb::SignalReply> {
        self.do_signal(&request.into_inner()).map(Response::new)
    }

    async fn resize(&self, request: Request<pb::ResizeRequest>) -> Reply<pb::ResizeReply> {
        self.do_resize(&request.into_inner()).map(Response::new)
    }

    async fn processes(&self, _: Request<pb::ProcessesRequest>) -> Reply<pb::ProcessesReply> {
        let processes = self.0.processes.list();
        Ok(Response::new(pb::ProcessesReply { processes }))
    }

    type ReadFileStream = ReceiverStream<Result<pb::FileChunk, Status>>;
    async fn read_file(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Reply<Self::ReadFileStream> {
        files::read_file(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileChunk>>,
    ) -> Reply<pb::WriteFileReply> {
        files::write_file(request.into_inner())
            .await
            .map(Response::new)
    }

    type ReadTarStream = ReceiverStream<Result<pb::FileChunk, Status>>;
    async fn read_tar(&self, request: Request<pb::ReadTarRequest>) -> Reply<Self::ReadTarStream> {
        files::read_tar(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn write_tar(
        &self,
        request: Request<Streaming<pb::WriteTarChunk>>,
    ) -> Reply<pb::WriteTarReply> {
        files::write_tar(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn stat(&self, request: Request<pb::StatRequest>) -> Reply<pb::StatReply> {
        files::stat(request.into_inner()).await.map(Response::new)
    }

    type ListStream = ReceiverStream<Result<pb::ListReply, Status>>;
    async fn list(&self, request: Request<pb::ListRequest>) -> Reply<Self::ListStream> {
        Ok(Response::new(files::list(request.into_inner())))
    }

    async fn make_dir(&self, request: Request<pb::MakeDirRequest>) -> Reply<pb::MakeDirReply> {
        files::make_dir(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn r#move(&self, request: Request<pb::MoveRequest>) -> Reply<pb::MoveReply> {
        files::rename(request.into_inner()).await.map(Response::new)
    }

    async fn remove(&self, request: Request<pb::RemoveRequest>) -> Reply<pb::RemoveReply> {
        files::remove(request.into_inner()).await.map(Response::new)
    }

    type WatchStream = ReceiverStream<Result<pb::WatchEvent, Status>>;
    async fn watch(&self, request: Request<pb::WatchRequest>) -> Reply<Self::WatchStream> {
        files::watch(request.into_inner()).map(Response::new)
    }
    type ForwardStream = ReceiverStream<Result<pb::ForwardChunk, Status>>;
    async fn forward(
        &self,
        request: Request<Streaming<pb::ForwardChunk>>,
    ) -> Reply<Self::ForwardStream> {
        forward::forward(&self.0.forwards, request.into_inner())
            .await
            .map(Response::new)
    }
}
