//! `serve`: the engine itself, and `serve --stop`.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cowslip_model::Lifetime;
use cowslip_model::api::ErrorCode;

use super::{Context, host, values};
use crate::daemon::log::Format;
use crate::daemon::{self};
use crate::exit::Failure;

/// An engine that a command started ends after so long without clients and running sandboxes.
const IDLE: Duration = Duration::from_secs(5 * 60);
/// How long an engine may take to finish what is under way.
const STOP_BOUND: Duration = Duration::from_secs(120);

/// Run the engine.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// End the engine that runs; sandboxes keep running
    #[arg(long)]
    stop: bool,
    /// Run as the engine that a command starts: in a session of its own, ending when idle
    #[arg(long, hide = true, conflicts_with = "stop")]
    background: bool,
    /// End after this time without clients and running sandboxes
    #[arg(long, value_name = "SPAN", value_parser = values::lifetime)]
    idle_exit: Option<Lifetime>,
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        env = "COWSLIP_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
    /// How to write the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: Format,
}

impl Serve {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        if self.stop {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.map_err(|error| Failure::io("start the event loop", &error))?;
            return runtime.block_on(stop(context));
        }
        let idle = self.idle_exit.map(Lifetime::duration);
        daemon::run(daemon::Serve {
            layout: context.client.layout().clone(),
            background: self.background,
            idle_exit: idle.or(self.background.then_some(IDLE)),
            config: self.config,
            level: context
                .global
                .log
                .clone()
                .unwrap_or_else(|| "info".to_owned()),
            format: self.log_format,
        })
    }
}

/// Asks the engine to end and waits until it has: its lock says so.
async fn stop(context: &Context) -> Result<u8, Failure> {
    if !host::shut_down(context).await? {
        return Ok(0);
    }
    let path = context.client.layout().state().join("lock");
    let lock = File::open(&path)
        .map_err(|error| Failure::io(format!("open the lock \"{}\"", path.display()), &error))?;
    let released = tokio::task::spawn_blocking(move || lock.lock_shared());
    match tokio::time::timeout(STOP_BOUND, released).await {
        Ok(Ok(Ok(()))) => Ok(0),
        Ok(Ok(Err(error))) => Err(Failure::io("wait for the engine's end", &error)),
        Ok(Err(error)) => Err(Failure::new(ErrorCode::Internal, error.to_string())),
        Err(_) => Err(Failure::new(
            ErrorCode::TimedOut,
            format!(
                "the engine has not ended within {} seconds",
                STOP_BOUND.as_secs()
            ),
        )
        .hint("it finishes what is under way; SIGTERM twice ends it at once")),
    }
}
