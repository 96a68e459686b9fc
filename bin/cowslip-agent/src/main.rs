//! cowslip-agent: PID 1 of every sandbox.
//!
//! ```text
//!   /init (PID 1)            boot, then serve until the power goes
//!   cowslip-agent child      the step between fork and exec of one process: process/helper.rs
//!   cowslip-agent serve      an ordinary process on a unix socket, for tests
//! ```
//!
//! It trusts the host and nothing in the guest. It must never exit while it is PID 1.

mod boot;
mod files;
mod machine;
mod network;
mod port;
mod process;
mod serve;
mod service;
mod sys;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use cowslip_proto::limits::MAX_FORWARDS;
use cowslip_proto::pb::{AgentMode, BootPhase};
use tokio::sync::{Notify, Semaphore};

use boot::Booted;
use boot::console::say;
use machine::identity::Identity;
use machine::shutdown::power_off;
use process::reaper::Children;
use process::{Cgroups, Processes};
use serve::Server;
use service::{Service, Shared};

fn main() -> ExitCode {
    let args = std::env::args_os().collect::<Vec<_>>();
    let args = args.iter().map(|a| a.as_os_str()).collect::<Vec<&OsStr>>();
    let words = args
        .iter()
        .skip(1)
        .map(|a| a.to_str().unwrap_or_default())
        .collect::<Vec<_>>();
    if std::process::id() == 1 {
        return init();
    }
    match words.as_slice() {
        ["child"] => process::helper::run(),
        ["serve", _] => ordinary(Path::new(args[2]), false),
        ["serve", "--link", _] => ordinary(Path::new(args[3]), true),
        _ => {
            say("this is the guest's /init; for tests: cowslip-agent serve [--link] SOCKET");
            ExitCode::from(2)
        }
    }
}

/// PID 1: never comes back while the kernel lives.
fn init() -> ExitCode {
    // Aborting would be a kernel panic without a word.
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("bug: {panic}"));
        say(&format!("{}", power_off()));
    }));
    let ended = boot::boot().map_err(|e| e.to_string()).and_then(|booted| {
        let run = || runtime()?.block_on(serve_guest(booted));
        run().map_err(|e| format!("cannot serve the host: {e}"))
    });
    if let Err(reason) = ended {
        say(&reason);
    }
    say(&format!("cannot power off: {}", power_off()));
    loop {
        // There is nothing left to try, and PID 1 must not exit.
        std::thread::park();
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    // One thread: a guest may have one cpu and little memory, and the agent waits most of its
    // life. What may block runs on threads that come and go.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(32)
        .thread_stack_size(256 * 1024)
        .build()
}

/// Serves until the host has asked for the power to be cut.
async fn serve_guest(booted: Booted) -> io::Result<()> {
    let (server, shared) = start(booted.mode, booted.phases, Cgroups::of_guest())?;
    // Tasks of their own: they go on while the last answer leaves.
    let mut ways = tokio::task::JoinSet::new();
    let vsock = server.clone();
    match booted.port {
        Some(port) => {
            let server = server.clone();
            ways.spawn(async move { server.port(port).await });
            // Beside a port vsock is a convenience; many machines have none.
            tokio::spawn(async move { vsock.vsock().await });
        }
        None => {
            ways.spawn(async move { vsock.vsock().await });
        }
    }
    tokio::task::spawn_blocking(|| booted.later.load());
    tokio::select! {
        ended = ways.join_next() => match ended {
            Some(Ok(ended)) => ended,
            Some(Err(e)) => Err(io::Error::other(e)),
            None => Ok(()),
        },
        () = shared.power_off.notified() => {
            server.last_words().await;
            Ok(())
        }
    }
}

/// An ordinary process on a unix socket: what it starts is real, the machine is not its own.
fn ordinary(socket: &Path, framed: bool) -> ExitCode {
    let run = || -> io::Result<()> {
        // Orphans come to us as they come to PID 1.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        runtime()?.block_on(async {
            let (server, _) = start(AgentMode::Process, Vec::new(), Cgroups::none())?;
            server.unix(socket, framed).await
        })
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&format!("cannot serve on \"{}\": {e}", socket.display()));
            ExitCode::FAILURE
        }
    }
}

fn start(
    mode: AgentMode,
    boot_phases: Vec<BootPhase>,
    cgroups: Cgroups,
) -> io::Result<(Server, Arc<Shared>)> {
    let children = Arc::new(Children::default());
    let processes = Processes::new(children.clone(), cgroups);
    tokio::spawn(children.clone().run());
    let sweeper = processes.clone();
    tokio::spawn(async move { sweeper.sweep_cgroups().await });
    let shared = Arc::new(Shared {
        mode,
        boot_phases,
        children,
        processes,
        identity: Identity::new(),
        forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
        power_off: Notify::new(),
    });
    Ok((Server::new(Service(shared.clone())), shared))
}
