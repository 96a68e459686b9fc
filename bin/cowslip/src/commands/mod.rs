//! The verbs, one file each (the four that only change a sandbox's state share one).

pub(crate) mod checkpoint;
pub(crate) mod completion;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod diff;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod forward;
pub(crate) mod host;
pub(crate) mod inspect;
pub(crate) mod kernel;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod ls;
mod many;
pub(crate) mod network;
pub(crate) mod prepare;
pub(crate) mod process;
pub(crate) mod run;
pub(crate) mod serve;
mod session;
pub(crate) mod template;
pub(crate) mod values;

use std::io;

use cowslip_model::api::exit::ENGINE;

use crate::args::{Cli, Command, Global};
use crate::client::Client;
use crate::exit::Failure;
use crate::output::Output;
use crate::paths::{self, Surroundings};

/// What a verb works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// The engine.
    pub(crate) client: Client,
    /// The user.
    pub(crate) output: Output,
    /// The global options.
    pub(crate) global: Global,
}

/// Runs the verb and gives back the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8, Failure> {
    let Cli { global, command } = cli;
    if let Command::Completion(completion) = command {
        return completion.run();
    }
    let state_dir = global.state_dir.as_deref();
    let layout = paths::layout(state_dir, global.run_dir.as_deref(), &Surroundings::ours())?;
    let output = Output {
        json: global.json,
        quiet: global.quiet,
    };
    let context = Context {
        client: Client::new(layout, global.quiet),
        output,
        global,
    };
    if let Command::Serve(serve) = command {
        return serve.run(&context);
    }
    if let Command::Host(verb) = command {
        return verb.run(&context);
    }
    if let Some(level) = &context.global.log {
        crate::daemon::log::init(level, crate::daemon::log::Format::Text)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::io("start the event loop", &error))?;
    runtime.block_on(dispatch(&context, command))
}

async fn dispatch(context: &Context, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run(verb) => verb.run(context).await,
        Command::Create(verb) => verb.run(context).await,
        Command::Start(verb) => verb.run(context).await,
        Command::Stop(verb) => verb.run(context).await,
        Command::Rm(verb) => verb.run(context).await,
        Command::Ls(verb) => verb.run(context).await,
        Command::Inspect(verb) => verb.run(context).await,
        Command::Logs(verb) => verb.run(context).await,
        Command::Exec(verb) => verb.run(context).await,
        Command::Shell(verb) => verb.run(context).await,
        Command::Forward(verb) => verb.run(context).await,
        Command::Cp(verb) => verb.run(context).await,
        Command::Checkpoint(verb) => verb.run(context).await,
        Command::Fork(verb) => verb.run(context).await,
        Command::Restore(verb) => verb.run(context).await,
        Command::Pause(verb) => verb.run(context).await,
        Command::Resume(verb) => verb.run(context).await,
        Command::Template(verb) => verb.run(context).await,
        Command::Network(verb) => verb.run(context).await,
        Command::Port(verb) => verb.run(context).await,
        Command::Diff(verb) => verb.run(context).await,
        Command::Kernel(verb) => verb.run(context).await,
        Command::Events(verb) => verb.run(context).await,
        Command::Doctor => host::doctor(context).await,
        Command::Info => host::info(context).await,
        Command::Gc(gc) => gc.run(context).await,
        Command::Version => host::version(context).await,
        // They need no event loop of ours and were dealt with before.
        Command::Serve(_) | Command::Host(_) | Command::Completion(_) => Ok(ENGINE),
    }
}

/// An absolute path that exists, for requests that name files on the engine's host.
fn on_this_host(path: &std::path::Path) -> Result<String, Failure> {
    let shown = path.display();
    let whole = std::fs::canonicalize(path)
        .map_err(|error: io::Error| Failure::io(format!("find \"{shown}\""), &error))?;
    whole
        .into_os_string()
        .into_string()
        .map_err(|whole| Failure::usage(format!("the path {} is not UTF-8", whole.display())))
}
