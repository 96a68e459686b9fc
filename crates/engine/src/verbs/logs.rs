//! `logs`: what the main process wrote, or the guest's console.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cowslip_host::FileWatch;
use cowslip_model::SandboxId;
use tokio::sync::mpsc;

use crate::Engine;
use crate::error::EngineError;

/// The main process's output, in the sandbox's directory.
pub(crate) const MAIN_LOG: &str = "main.log";
/// The guest's console, in the sandbox's directory.
pub(crate) const CONSOLE_LOG: &str = "console.log";
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// What the main process wrote.
    Main,
    /// The guest's console.
    Console,
}

impl Engine {
    /// A log from its beginning; with `follow` until the sandbox runs no more.
    ///
    /// # Errors
    /// When there is no such sandbox.
    pub async fn logs(
        self: &Arc<Self>,
        reference: &str,
        kind: LogKind,
        follow: bool,
    ) -> Result<mpsc::Receiver<Bytes>, EngineError> {
        let record = self.find_sandbox(reference)?;
        let name = match kind {
            LogKind::Main => MAIN_LOG,
            LogKind::Console => CONSOLE_LOG,
        };
        let path = self.site.layout.sandbox(record.id).join(name);
        let (sender, receiver) = mpsc::channel(4);
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            let result = async {
                let mut tail = Tail { path, offset: 0 };
                tail.send(&sender).await?;
                if follow {
                    engine.follow(record.id, tail, &sender).await?;
                }
                std::io::Result::Ok(())
            };
            if let Err(error) = result.await {
                tracing::warn!(sandbox = %record.name, %error, "read a log");
            }
        });
        Ok(receiver)
    }

    /// Sends what is appended until the machine ends or the client goes.
    async fn follow(
        &self,
        id: SandboxId,
        mut tail: Tail,
        sender: &mpsc::Sender<Bytes>,
    ) -> std::io::Result<()> {
        let Some(live) = self.live.get(id) else {
            return Ok(());
        };
        let Ok(mut watch) = FileWatch::new(&tail.path) else {
            return Ok(());
        };
        let ended = live.machine.ended();
        tokio::pin!(ended);
        loop {
            // After the watch began, so that nothing falls between.
            tail.send(sender).await?;
            tokio::select! {
                changed = watch.changed() => changed?,
                () = sender.closed() => return Ok(()),
                _ = &mut ended => return tail.send(sender).await,
            }
        }
    }
}

/// A place in a growing file.
struct Tail {
    path: PathBuf,
    offset: u64,
}

impl Tail {
    /// Sends everything after the offset; a file that was cut is sent from its beginning.
    async fn send(&mut self, sender: &mpsc::Sender<Bytes>) -> std::io::Result<()> {
        loop {
            let (path, offset) = (self.path.clone(), self.offset);
            let (bytes, offset) = tokio::task::spawn_blocking(move || read_at(&path, offset))
                .await
                .map_err(std::io::Error::other)??;
            self.offset = offset + bytes.len() as u64;
            if bytes.is_empty() || sender.send(bytes).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn read_at(path: &Path, offset: u64) -> std::io::Result<(Bytes, u64)> {
    let mut file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((Bytes::new(), offset));
        }
        other => other?,
    };
    let offset = if file.metadata()?.len() < offset {
        0
    } else {
        offset
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::with_capacity(CHUNK);
    file.take(CHUNK as u64).read_to_end(&mut bytes)?;
    Ok((bytes.into(), offset))
}
