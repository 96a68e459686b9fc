//! The engine's process: everything around the engine that is neither engine nor API.
//!
//! ```text
//!  serve ─► (pid 1: init, which runs the rest as its child)
//!        ─► directories ─► configuration ─► engine (takes the lock) ─► socket ─► requests
//!        ─► signal · POST /v1/shutdown · idle ─► requests end ─► engine goes; sandboxes stay
//! ```

mod background;
pub(crate) mod config;
mod init;
pub(crate) mod log;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cowslip_engine::{Engine, OpenError};
use cowslip_host::Layout;
use cowslip_ledger::lock::LockError;
use cowslip_model::api::ErrorCode;
use cowslip_server::{Options, Shutdown};
use tokio::signal::unix::{SignalKind, signal};

use crate::autostart::Readiness;
use crate::exit::Failure;
use crate::paths;

use background::Reporter;

/// How to run the engine.
#[derive(Debug)]
pub(crate) struct Serve {
    /// Its directories.
    pub(crate) layout: Layout,
    /// In a session of its own, reporting over standard output.
    pub(crate) background: bool,
    /// End after so long without clients and running sandboxes.
    pub(crate) idle_exit: Option<Duration>,
    /// A configuration file that must exist; none: the usual one, where it exists.
    pub(crate) config: Option<PathBuf>,
    /// What to log.
    pub(crate) level: String,
    /// How to write the log.
    pub(crate) format: log::Format,
}

/// Runs the engine until it is told to end; gives the process's exit code.
pub(crate) fn run(serve: Serve) -> Result<u8, Failure> {
    if rustix::process::getpid() == rustix::process::Pid::INIT {
        return init::run();
    }
    let reporter = if serve.background {
        Some(Reporter::detach()?)
    } else {
        None
    };
    match run_engine(&serve, reporter.as_ref()) {
        Err(failure) => match reporter {
            Some(reporter) => {
                tracing::error!(error = %failure.error.message, "the engine did not start");
                reporter.failed(&failure);
                Ok(failure.exit)
            }
            None => Err(failure),
        },
        Ok(()) => Ok(0),
    }
}

fn run_engine(serve: &Serve, reporter: Option<&Reporter>) -> Result<(), Failure> {
    log::init(&serve.level, serve.format)?;
    paths::prepare(&serve.layout)?;
    let mut config = config::load(serve.config.as_deref())?;
    config.paths.state = serve.layout.state().to_owned();
    config.paths.run = serve.layout.run().to_owned();
    config.paths.cache = serve.layout.state().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::io("start the event loop", &error))?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        end_on_signals(shutdown.clone())?;
        let engine = Engine::open(config).await.map_err(not_opened)?;
        let (listener, socket) = socket::listen(&serve.layout)?;
        tracing::info!(socket = %socket.path().display(), "listening");
        if let Some(reporter) = reporter {
            reporter.say(&Readiness::Ready);
        }
        // Where no service manager started us there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let options = Options {
            idle_exit: serve.idle_exit,
            shutdown,
        };
        let served = Arc::clone(&engine);
        let end = cowslip_server::serve(served, listener, options, || socket.close()).await;
        tracing::info!(reason = %end, "the engine ends; sandboxes stay");
        engine.close().await;
        Ok(())
    })
}

/// The first signal ends the engine in order, the second at once.
fn end_on_signals(shutdown: Shutdown) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::io("listen for signals", &error));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if std::mem::replace(&mut asked, true) {
                tracing::warn!("a second signal: ending at once");
                std::process::exit(i32::from(cowslip_model::api::exit::ENGINE));
            }
            tracing::info!("a signal: finishing what is under way, then ending");
            shutdown.begin("a signal");
        }
    });
    Ok(())
}

/// Why an engine did not open. That another one has the state directory is a conflict, by which whoever
/// started this one knows it.
fn not_opened(error: OpenError) -> Failure {
    let code = match &error {
        OpenError::Locked(LockError::Held { .. }) => ErrorCode::Conflict,
        _ => ErrorCode::Internal,
    };
    let mut failure = Failure::new(code, error.to_string());
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        failure = failure.because(error);
        if error.downcast_ref::<std::io::Error>().is_some_and(is_full) {
            failure.error.code = ErrorCode::NoSpace;
            failure = failure.hint("free some space, or choose another with --state-dir");
        }
        cause = error.source();
    }
    failure
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Whether a failure means that another engine has the state directory.
fn is_held(failure: &Failure) -> bool {
    failure.error.code == ErrorCode::Conflict
}
