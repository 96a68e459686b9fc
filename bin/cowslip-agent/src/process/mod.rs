//! The processes that the agent started on request: by the id that the caller chose.
//!
//! ```text
//!   starting ──► running ──► exited (status and last output kept) ──► forgotten
//!      │            │                                                 (the oldest first)
//!      └► failed    └── lives on without any client
//! ```
//!
//! `reaper` owns their end, `pump` their output, `helper` is what runs between fork and exec.

mod cgroup;
pub(crate) mod helper;
mod output;
mod pump;
pub(crate) mod reaper;
mod spawn;
mod stdin;
pub(crate) mod user;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowslip_proto::limits::{MAX_ARGS_BYTES, MAX_EXITED, MAX_PROCESSES, is_process_id};
use cowslip_proto::pb::{self, StartFailure};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex as AsyncMutex, watch};

pub(crate) use cgroup::Cgroups;
use helper::{Failure, Request};
pub(crate) use output::Follower;
use output::Output;
use reaper::Children;
use stdin::Stdin;

/// A process that runs, or has ended and is still remembered.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: String,
    pub(crate) pid: u32,
    argv: Vec<Vec<u8>>,
    output: Arc<Output>,
    pub(crate) stdin: AsyncMutex<Stdin>,
    pty: Option<Arc<AsyncFd<OwnedFd>>>,
    ended: watch::Sender<bool>,
}

impl Process {
    /// Follows its output from an offset; `None` when too many do.
    pub(crate) fn follow(&self, offset: u64) -> Option<Follower> {
        self.output.follow(offset)
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) {
        // The sender is ours: it cannot go away.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn info(&self) -> pb::ProcessInfo {
        let (output_start, output_end, followers) = self.output.extent();
        pb::ProcessInfo {
            process: self.id.clone(),
            pid: self.pid,
            argv: self.argv.clone(),
            pty: self.pty.is_some(),
            exited: self.output.exited(),
            output_start,
            output_end,
            followers: u32::try_from(followers).unwrap_or(u32::MAX),
        }
    }
}

#[derive(Debug)]
enum Slot {
    Starting,
    Known(Arc<Process>),
}

#[derive(Debug, Default)]
struct Table {
    slots: BTreeMap<String, Slot>,
    /// Ended, oldest first.
    exited: VecDeque<String>,
}

/// All processes that were started on request.
#[derive(Debug)]
pub(crate) struct Processes {
    table: Mutex<Table>,
    children: Arc<Children>,
    cgroups: Cgroups,
    /// The sandbox's own environment.
    env: Mutex<Vec<pb::EnvVar>>,
}

impl Processes {
    pub(crate) fn new(children: Arc<Children>, cgroups: Cgroups) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            children,
            cgroups,
            env: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the environment of all processes that are started from now on.
    pub(crate) fn set_env(&self, env: Vec<pb::EnvVar>) {
        *self.env.lock().unwrap_or_else(PoisonError::into_inner) = env;
    }

    /// Removes cgroups that have become empty, for as long as it is polled.
    pub(crate) async fn sweep_cgroups(&self) {
        loop {
            self.children.next_round().await;
            self.cgroups.sweep();
        }
    }

    /// Starts a process and follows it from its first byte. Not cancel safe: run it in a task.
    pub(crate) async fn start(
        self: &Arc<Self>,
        request: pb::ExecRequest,
    ) -> Result<(Arc<Process>, Follower), Failure> {
        check(&request)?;
        let id = request.process.clone();
        self.reserve(&id)?;
        let started = self.start_reserved(request).await;
        let mut table = self.lock();
        match started {
            Ok((process, spawned)) => {
                table.slots.insert(id, Slot::Known(process.clone()));
                drop(table);
                let follower = process.follow(0).ok_or_else(|| {
                    Failure::new(StartFailure::Limit, "too many follow this process")
                })?;
                self.clone().watch(process.clone(), spawned);
                Ok((process, follower))
            }
            Err(failure) => {
                table.slots.remove(&id);
                Err(failure)
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<(), Failure> {
        let mut table = self.lock();
        if table.slots.contains_key(id) {
            let message = format!("process \"{id}\" was started before");
            return Err(Failure::new(StartFailure::IdInUse, message));
        }
        if table.slots.len() - table.exited.len() >= MAX_PROCESSES {
            let message = format!("the sandbox runs {MAX_PROCESSES} commands already");
            return Err(Failure::new(StartFailure::Limit, message));
        }
        table.slots.insert(id.to_owned(), Slot::Starting);
        Ok(())
    }

    async fn start_reserved(
        &self,
        request: pb::ExecRequest,
    ) -> Result<(Arc<Process>, Running), Failure> {
        let mut env = self
            .env
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        env.extend(request.env);
        let spec = Request {
            argv: request.argv.clone(),
            env,
            cwd: request.cwd,
            user: request.user,
            pty: request.pty.is_some(),
        };
        let cgroup = self.cgroups.create(&request.process);
        let entry = cgroup.as_ref().map(|(_, entry)| entry);
        let spawned = spawn::spawn(&self.children, spec, request.pty, request.stdin, entry).await;
        let cgroup = cgroup.map(|(cgroup, _)| cgroup);
        let spawned = match spawned {
            Ok(spawned) => spawned,
            Err(failure) => {
                if let Some(cgroup) = cgroup {
                    self.cgroups.leave(cgroup);
                }
                return Err(failure);
            }
        };
        let process = Arc::new(Process {
            id: request.process,
            pid: spawned.pid.unsigned_abs(),
            argv: request.argv,
            output: Arc::default(),
            stdin: AsyncMutex::new(spawned.stdin),
            pty: spawned.pty,
            ended: watch::Sender::new(false),
        });
        Ok((
            process,
            Running {
                exit: spawned.exit,
                source: spawned.source,
                cgroup,
            },
        ))
    }

    fn watch(self: Arc<Self>, process: Arc<Process>, running: Running) {
        tokio::spawn(async move {
            let output = process.output.clone();
            pump::run(running.source, running.exit, output, || {
                process.ended.send_replace(true);
                if let Some(cgroup) = running.cgroup {
                    self.cgroups.leave(cgroup);
                }
                self.retire(&process.id);
            })
            .await;
        });
    }

    /// Remembers an ended process, and forgets the oldest one.
    fn retire(&self, id: &str) {
        let mut table = self.lock();
        table.exited.push_back(id.to_owned());
        while table.exited.len() > MAX_EXITED {
            if let Some(oldest) = table.exited.pop_front() {
                table.slots.remove(&oldest);
            }
        }
    }

    /// A process by its id.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Process>> {
        match self.lock().slots.get(id) {
            Some(Slot::Known(process)) => Some(process.clone()),
            Some(Slot::Starting) | None => None,
        }
    }

    /// All that are remembered.
    pub(crate) fn list(&self) -> Vec<pb::ProcessInfo> {
        let table = self.lock();
        let known = table.slots.values().filter_map(|slot| match slot {
            Slot::Known(process) => Some(process.info()),
            Slot::Starting => None,
        });
        known.collect()
    }

    /// Signals a process.
    ///
    /// # Errors
    /// ESRCH when it has ended, `Unsupported` without cgroups.
    pub(crate) fn signal(
        &self,
        process: &Process,
        signal: i32,
        scope: pb::SignalScope,
    ) -> io::Result<()> {
        let pid = i32::try_from(process.pid).map_err(io::Error::other)?;
        match scope {
            pb::SignalScope::Group => self.children.signal(pid, signal, true),
            pb::SignalScope::Process => self.children.signal(pid, signal, false),
            pb::SignalScope::Cgroup => match self.cgroups.kill(&process.id) {
                // Everything has ended and the cgroup is gone: nothing is left to kill.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            },
        }
    }

    /// Tells a process's terminal its size.
    ///
    /// # Errors
    /// `Unsupported` when it has none.
    pub(crate) fn resize(process: &Process, size: pb::PtySize) -> io::Result<()> {
        match &process.pty {
            Some(master) => spawn::resize(master.as_fd(), size),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// What the task that watches a process owns.
#[derive(Debug)]
struct Running {
    exit: tokio::sync::oneshot::Receiver<reaper::Exit>,
    source: pump::Source,
    cgroup: Option<cgroup::Cgroup>,
}

/// Refuses what cannot be carried to execve(2) as it is.
fn check(request: &pb::ExecRequest) -> Result<(), Failure> {
    let refuse = |message: &str| Err(Failure::new(StartFailure::Other, message));
    if !is_process_id(&request.process) {
        return refuse("the process id is not 1 to 64 of [A-Za-z0-9_-]");
    }
    if request.argv.first().is_none_or(Vec::is_empty) {
        return Err(Failure::new(StartFailure::NotFound, "no command was given"));
    }
    let args = request.argv.iter().map(|a| a.len() + 1).sum::<usize>();
    let vars = request
        .env
        .iter()
        .map(|e| e.name.len() + e.value.len() + 2)
        .sum::<usize>();
    if args.saturating_add(vars) > MAX_ARGS_BYTES {
        return refuse("arguments and environment are larger than 1 MiB");
    }
    let texts = request
        .argv
        .iter()
        .chain(request.env.iter().flat_map(|e| [&e.name, &e.value]));
    if texts.chain([&request.cwd]).any(|t| t.contains(&0)) {
        return refuse("an argument, variable or directory contains a NUL byte");
    }
    if request
        .env
        .iter()
        .any(|e| e.name.is_empty() || e.name.contains(&b'='))
    {
        return refuse("the name of a variable is empty or contains \"=\"");
    }
    Ok(())
}
