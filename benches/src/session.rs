//! An exec session straight over the engine's API, as a program would use it that stays.

use std::path::Path;
use std::time::{Duration, Instant};

use cowslip_model::api::{ExecRequest, ServerMessage, channel};
use futures_util::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::Failure;

/// How long the parts of an exec took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Until the session was open: connection and upgrade.
    pub(crate) opened: Duration,
    /// Until the engine said that the process runs.
    pub(crate) started: Duration,
    /// Until its exit code was there.
    pub(crate) ended: Duration,
}

/// Runs a command in a sandbox and waits for its end.
pub(crate) async fn exec(socket: &Path, sandbox: &str, argv: &[&str]) -> Result<Times, Failure> {
    let request = ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: std::collections::BTreeMap::new(),
        workdir: None,
        user: None,
        stdin: false,
        terminal: None,
        timeout: None,
        detach: false,
    };
    let begun = Instant::now();
    let stream = UnixStream::connect(socket).await?;
    let url = format!("ws://cowslip/v1/sandboxes/{sandbox}/exec");
    let (mut socket, _) = client_async(url, stream).await?;
    let opened = begun.elapsed();
    socket
        .send(Message::text(serde_json::to_string(&request)?))
        .await?;
    let mut started = None;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => match serde_json::from_str(&text)? {
                ServerMessage::Started { .. } => started = Some(begun.elapsed()),
                ServerMessage::Exited { code: 0 } => {
                    return Ok(Times {
                        opened,
                        started: started.unwrap_or_default(),
                        ended: begun.elapsed(),
                    });
                }
                ServerMessage::Exited { code } => {
                    return Err(format!("{argv:?} ended with {code}").into());
                }
                ServerMessage::Failed { error } => return Err(error.message.into()),
                _ => {}
            },
            Message::Binary(bytes) if bytes.first() == Some(&channel::STDERR) => {
                return Err(String::from_utf8_lossy(&bytes[1..]).into_owned().into());
            }
            _ => {}
        }
    }
    Err("the session was closed early".into())
}
