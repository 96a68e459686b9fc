//! An engine to measure, with a template and a kernel; and what a measurement asks of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cowslip_e2e::{Instance, Kernel, Setup};
use cowslip_model::api::{Phase, Sandbox, ServerMessage};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::{Failure, http, session};

/// Guest memory, in MiB.
pub(crate) const MEMORY_MIB: u64 = 128;
/// What is run to see that a guest answers.
pub(crate) const COMMAND: [&str; 2] = ["/bin/echo", "ready"];

/// How often everything is measured: `usual`, or what `COWSLIP_TEST_BENCH_ROUNDS` says.
pub(crate) fn rounds(usual: usize) -> Result<usize, Failure> {
    match std::env::var("COWSLIP_TEST_BENCH_ROUNDS") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(usual),
    }
}

/// What network the sandboxes get.
#[derive(Clone, Copy)]
pub(crate) enum Network {
    /// None, as the bare machines have none.
    None,
    /// One that is made for the start.
    Made,
    /// One that was ready, as an engine keeps them unless it is told otherwise.
    Spare,
}

impl Network {
    fn configuration(self) -> &'static str {
        match self {
            Self::None => "mode = \"none\"",
            Self::Made => "warm = 0",
            Self::Spare => "warm = 4",
        }
    }
}

/// An engine that runs Firecracker as `isolation` says.
pub(crate) struct Lab {
    instance: Instance,
}

impl Lab {
    /// `chain` images of memory may stand on one another; none: each holds all.
    pub(crate) fn new(isolation: &str, chain: u32, network: Network) -> Self {
        let setup = Setup {
            machine: format!(
                "vmm = \"firecracker\"\nisolation = \"{isolation}\"\nmemory_chain = {chain}"
            ),
            network: network.configuration().to_owned(),
            ..Setup::default()
        };
        Self {
            instance: Instance::ready(setup, Kernel::Guest),
        }
    }

    pub(crate) fn instance(&self) -> &Instance {
        &self.instance
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.instance.run_dir().join("cowslip.sock")
    }

    /// The template's image.
    pub(crate) fn image(&self) -> Result<PathBuf, Failure> {
        let templates = std::fs::read_dir(self.instance.state().join("templates"))?;
        let mut images = templates.filter_map(|entry| Some(entry.ok()?.path().join("image.ext4")));
        Ok(images.next().ok_or("there is no template")?)
    }

    /// The engine's process.
    pub(crate) fn pid(&self) -> Result<u32, Failure> {
        Ok(self.instance.info().pid)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        http::request(&self.socket(), "POST", path, Some(body)).await
    }

    /// Makes a sandbox, starts it and runs the command: one session. Gives how long that took.
    pub(crate) async fn run(&self, name: &str) -> Result<Duration, Failure> {
        Ok(self.run_in_steps(name).await?.0)
    }

    /// The same, with the steps that the session tells of.
    pub(crate) async fn run_in_steps(
        &self,
        name: &str,
    ) -> Result<(Duration, Vec<(String, Duration)>), Failure> {
        let mut steps = Vec::new();
        let request = json!({
            "sandbox": { "template": "box", "name": name, "memory": MEMORY_MIB << 20 },
            "exec": { "argv": COMMAND },
            "keep": true,
        });
        let begun = Instant::now();
        let stream = UnixStream::connect(self.socket()).await?;
        let (mut socket, _) = client_async("ws://cowslip/v1/run", stream).await?;
        socket.send(Message::text(request.to_string())).await?;
        while let Some(message) = socket.next().await {
            if let Message::Text(text) = message? {
                match serde_json::from_str(&text)? {
                    ServerMessage::Progress { step, took_us } => {
                        steps.push((step, Duration::from_micros(took_us)));
                    }
                    ServerMessage::Exited { code: 0 } => return Ok((begun.elapsed(), steps)),
                    ServerMessage::Exited { code } => {
                        return Err(format!("the command ended with {code}").into());
                    }
                    ServerMessage::Failed { error } => {
                        return Err(format!("{}: {:?}", error.message, error.causes).into());
                    }
                    _ => {}
                }
            }
        }
        Err("the session was closed early".into())
    }

    pub(crate) async fn checkpoint(&self, sandbox: &str, name: &str) -> Result<Value, Failure> {
        let request = json!({ "sandbox": sandbox, "name": name });
        self.post("/v1/checkpoints", &request).await
    }

    /// Forks at once.
    pub(crate) async fn fork(
        &self,
        checkpoint: &str,
        name: &str,
        count: u32,
    ) -> Result<(), Failure> {
        let request = json!({ "name": name, "count": count });
        let path = format!("/v1/checkpoints/{checkpoint}/fork");
        self.post(&path, &request).await.map(drop)
    }

    pub(crate) async fn exec(&self, sandbox: &str) -> Result<(), Failure> {
        session::exec(&self.socket(), sandbox, &COMMAND)
            .await
            .map(drop)
    }

    pub(crate) fn remove(&self, names: &[String]) {
        let words = ["rm", "--force"].into_iter().map(str::to_owned);
        let _ = self.instance.call(words.chain(names.iter().cloned())).ok();
    }

    pub(crate) fn sandbox(&self, name: &str) -> Sandbox {
        self.instance.sandbox(name)
    }
}

/// The phases that are the engine's own: nothing of the monitor or the guest is waited for.
pub(crate) fn own(phases: &[Phase]) -> Duration {
    let own = ["look up", "directories", "disk", "image"];
    let us = phases
        .iter()
        .filter(|phase| own.contains(&phase.name.as_str()));
    Duration::from_micros(us.map(|phase| phase.us).sum())
}
