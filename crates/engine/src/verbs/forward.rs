//! `forward`: a connection to a port of a guest's loopback, through its agent. No network is needed for it.

use std::sync::Arc;

use cowslip_ledger::SandboxRecord;
use cowslip_model::api::{ForwardRequest, ServerMessage};
use cowslip_proto::client::{Acknowledge, CallError, Code, ForwardReader, ForwardWriter};
use tokio::sync::mpsc;

use crate::Engine;
use crate::error::EngineError;
use crate::guest::GuestError;
use crate::session::{ControlFrame, Incoming, ServerFrame, Session};

impl Engine {
    /// Connects to a port in a sandbox and carries the connection; everything, failures too, goes to the session.
    /// A client that goes away breaks the connection off.
    pub async fn forward(
        self: &Arc<Self>,
        reference: &str,
        request: ForwardRequest,
        session: Session,
    ) {
        let outgoing = session.outgoing.clone();
        let outcome = tokio::select! {
            outcome = self.try_forward(reference, request, session) => outcome.map(|()| None),
            () = outgoing.closed() => return,
        };
        Session::end(&outgoing, outcome).await;
    }

    async fn try_forward(
        &self,
        reference: &str,
        request: ForwardRequest,
        session: Session,
    ) -> Result<(), EngineError> {
        let (record, agent) = self.agent_of(reference, "connect to").await?;
        let connected = agent.forward(request.port).await;
        let (writer, reader) = connected.map_err(|source| match source {
            CallError::Refused {
                code: Code::FailedPrecondition,
                ..
            } => EngineError::NothingListens {
                name: record.name.clone(),
                port: request.port,
            },
            source => failed(&record, source),
        })?;
        session.send(ServerMessage::Connected).await;
        let Session { incoming, outgoing } = session;
        let Incoming { input, control } = incoming;
        let acknowledge = reader.acknowledge();
        // The reader knows how the connection ended; the other two only stop.
        tokio::select! {
            ended = from_guest(reader, &outgoing) => ended.map_err(|source| failed(&record, source)),
            never = to_guest(writer, input, &outgoing) => match never {},
            never = taken(&acknowledge, control) => match never {},
        }
    }
}

fn failed(record: &SandboxRecord, source: CallError) -> EngineError {
    EngineError::from(GuestError::Call {
        operation: "forward a connection",
        sandbox: record.id,
        source,
    })
}

async fn from_guest(
    mut reader: ForwardReader,
    outgoing: &mpsc::Sender<ServerFrame>,
) -> Result<(), CallError> {
    // That the client is gone ends the session elsewhere.
    while let Some(bytes) = reader.next().await? {
        let _ = outgoing.send(ServerFrame::Stdout(bytes)).await;
    }
    let end = ServerFrame::Message(ServerMessage::OutputEnd);
    let _ = outgoing.send(end).await;
    reader.finished().await
}

async fn to_guest(
    mut writer: ForwardWriter,
    mut input: mpsc::Receiver<bytes::Bytes>,
    outgoing: &mpsc::Sender<ServerFrame>,
) -> std::convert::Infallible {
    loop {
        let went = match input.recv().await {
            Some(bytes) => writer.write(bytes).await,
            // A client that is gone has not said all.
            None if outgoing.is_closed() => break,
            None => {
                let _ = writer.close().await;
                break;
            }
        };
        if went.is_err() {
            break;
        }
    }
    std::future::pending().await
}

async fn taken(
    acknowledge: &Acknowledge,
    mut control: mpsc::Receiver<ControlFrame>,
) -> std::convert::Infallible {
    while let Some(frame) = control.recv().await {
        if let ControlFrame::Taken(bytes) = frame {
            acknowledge.taken(bytes).await;
        }
    }
    std::future::pending().await
}
