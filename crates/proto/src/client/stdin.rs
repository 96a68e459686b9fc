//! The input of a process in the guest: one call that is open for as long as there is input.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{AgentClient, CallError};
use crate::limits::CHUNK_BYTES;
use crate::pb;

/// The input of a process. Dropping it leaves the input open; [`close`](Self::close) ends it.
#[derive(Debug)]
pub struct StdinSink {
    client: AgentClient,
    process: String,
    call: Option<StdinCall>,
}

#[derive(Debug)]
struct StdinCall {
    chunks: mpsc::Sender<pb::StdinChunk>,
    reply: JoinHandle<Result<u64, CallError>>,
}

impl StdinSink {
    pub(super) fn new(client: AgentClient, process: String) -> Self {
        Self {
            client,
            process,
            call: None,
        }
    }

    /// Writes; waits while the process does not read.
    ///
    /// # Errors
    /// [`CallError::Refused`] with [`Code::FailedPrecondition`] when the process takes no input
    /// (any more), [`CallError::LinkLost`].
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), CallError> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(CHUNK_BYTES));
            self.send(part, false).await?;
        }
        Ok(())
    }

    /// Ends the input after what was written, and waits until the process has it all.
    ///
    /// # Errors
    /// As [`write`](Self::write); that the process ended without reading is no error.
    pub async fn close(mut self) -> Result<(), CallError> {
        match self.send(Bytes::new(), true).await {
            Ok(()) => {}
            Err(CallError::Refused {
                code: Code::FailedPrecondition,
                ..
            }) => return Ok(()),
            Err(e) => return Err(e),
        }
        match self.finish().await {
            Err(CallError::Refused {
                code: Code::FailedPrecondition,
                ..
            })
            | Ok(()) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn send(&mut self, data: Bytes, close: bool) -> Result<(), CallError> {
        let mut chunk = pb::StdinChunk {
            process: String::new(),
            data,
            close,
        };
        let call = match &mut self.call {
            Some(call) => call,
            None => {
                chunk.process.clone_from(&self.process);
                let call = open(&self.client);
                self.call.insert(call)
            }
        };
        if call.chunks.send(chunk).await.is_err() {
            // The agent has ended the call; it says why.
            self.finish().await?;
            return Err(CallError::Refused {
                op: "stdin",
                code: Code::FailedPrecondition,
                message: format!("process \"{}\" takes no more input", self.process),
            });
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), CallError> {
        let Some(StdinCall { chunks, reply }) = self.call.take() else {
            return Ok(());
        };
        drop(chunks);
        match reply.await {
            Ok(reply) => reply.map(|_| ()),
            Err(_) => Err(CallError::LinkLost { op: "stdin" }),
        }
    }
}

fn open(client: &AgentClient) -> StdinCall {
    let (chunks, receiver) = mpsc::channel(4);
    let mut grpc = client.grpc();
    let reply = tokio::spawn(async move {
        match grpc.stdin(ReceiverStream::new(receiver)).await {
            Ok(reply) => Ok(reply.into_inner().accepted_bytes),
            Err(status) => Err(CallError::from_status("stdin", &status)),
        }
    });
    StdinCall { chunks, reply }
}
