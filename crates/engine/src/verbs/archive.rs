//! `cp`: tar streams out of a guest and into it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cowslip_model::SandboxState;
use cowslip_proto::AgentClient;
use futures_util::stream;
use tokio::sync::mpsc;

use crate::Engine;
use crate::error::EngineError;
use crate::guest::GuestError;

/// Chunks on their way at most.
const CHUNKS: usize = 8;

impl Engine {
    /// The agent of a running sandbox.
    pub(crate) async fn agent_of(
        &self,
        reference: &str,
        verb: &'static str,
    ) -> Result<(cowslip_ledger::SandboxRecord, AgentClient), EngineError> {
        let record = self.find_sandbox(reference)?;
        if record.state != SandboxState::Running {
            return Err(EngineError::State {
                verb,
                name: record.name,
                state: record.state,
                reason: record.reason,
            });
        }
        let live = self.live(&record)?;
        let agent = self.agent(&record, &live).await?;
        Ok((record, agent))
    }

    /// A file or directory of the guest as a tar stream; its top entry is the path's last part.
    ///
    /// # Errors
    /// When the sandbox does not run or there is no such path. Later failures end the stream with an
    /// error.
    pub async fn archive_out(
        self: &Arc<Self>,
        reference: &str,
        path: &str,
    ) -> Result<mpsc::Receiver<Result<Bytes, EngineError>>, EngineError> {
        let (record, agent) = self.agent_of(reference, "copy from").await?;
        let failed = move |source| {
            EngineError::from(GuestError::Call {
                operation: "read files",
                sandbox: record.id,
                source,
            })
        };
        let mut chunks = agent
            .read_tar(Path::new(path), None, false)
            .await
            .map_err(failed)?;
        let (sender, receiver) = mpsc::channel(CHUNKS);
        tokio::spawn(async move {
            loop {
                let item = match chunks.next().await {
                    Ok(Some(chunk)) => Ok(chunk),
                    Ok(None) => return,
                    Err(error) => Err(failed(error)),
                };
                let last = item.is_err();
                if sender.send(item).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// Unpacks a tar stream into an existing directory of the guest; gives the number of entries.
    ///
    /// # Errors
    /// When the sandbox does not run, there is no such directory, or the archive is refused; what was
    /// unpacked before stays.
    pub async fn archive_in(
        self: &Arc<Self>,
        reference: &str,
        path: &str,
        chunks: mpsc::Receiver<Bytes>,
    ) -> Result<u64, EngineError> {
        let (record, agent) = self.agent_of(reference, "copy to").await?;
        let body = body_of(chunks);
        agent
            .write_tar(Path::new(path), None, body)
            .await
            .map_err(|source| {
                GuestError::Call {
                    operation: "write files",
                    sandbox: record.id,
                    source,
                }
                .into()
            })
    }
}

/// What a client sends, as the agent takes it.
pub(crate) fn body_of(
    chunks: mpsc::Receiver<Bytes>,
) -> impl stream::Stream<Item = std::io::Result<Bytes>> + Send {
    stream::unfold(chunks, |mut chunks| async move {
        let chunk = chunks.recv().await?;
        Some((Ok(chunk), chunks))
    })
}
