//! Processes in the guest: start, follow, feed, signal.

use bytes::Bytes;
use tonic::{Request, Streaming};

use super::{AgentClient, CallError, ExecError, StdinSink};
use crate::pb::{self, exec_event::Event, exited::How};

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct ExecStart {
    /// Chosen by the caller, never used before in this guest: see
    /// [`is_process_id`](crate::limits::is_process_id) and [`new_process_id`].
    pub process: String,
    /// The program and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// On top of the sandbox's own environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Default: the user's home where it exists, else `/`.
    pub cwd: Option<Vec<u8>>,
    /// `name`, `uid`, either with `:group` or `:gid`. Default: root.
    pub user: Option<String>,
    /// Rows and columns of a terminal; without it there are three pipes.
    pub pty: Option<PtySize>,
    /// Will anything be written to standard input? If not it is at its end from the start.
    pub stdin: bool,
}

impl ExecStart {
    /// A process of a fresh id with no terminal and no input, as root.
    #[must_use]
    pub fn new<I, A>(argv: I) -> Self
    where
        I: IntoIterator<Item = A>,
        A: Into<Vec<u8>>,
    {
        Self {
            process: new_process_id(),
            argv: argv.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    fn into_request(self) -> pb::ExecRequest {
        pb::ExecRequest {
            process: self.process,
            argv: self.argv,
            env: self
                .env
                .into_iter()
                .map(|(name, value)| pb::EnvVar { name, value })
                .collect(),
            cwd: self.cwd.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            pty: self.pty.map(PtySize::into_pb),
            stdin: self.stdin,
        }
    }
}

/// A process id that nobody has used: 16 random hexadecimal digits after `p`.
#[must_use]
pub fn new_process_id() -> String {
    // Without randomness the agent still refuses an id that is in use.
    format!("p{:016x}", getrandom::u64().unwrap_or_default())
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtySize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl PtySize {
    fn into_pb(self) -> pb::PtySize {
        pb::PtySize {
            rows: self.rows.into(),
            cols: self.cols.into(),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// It left a core dump.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// The exit code that a shell would show: the code, or 128 and the signal.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code & 0xff,
            Self::Signal { signal, .. } => (128 + signal) & 0xff,
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }

    fn from_pb(exited: &pb::Exited) -> Self {
        match exited.how {
            Some(How::Signal(signal)) => Self::Signal {
                signal,
                core_dumped: exited.core_dumped,
            },
            Some(How::Code(code)) => Self::Code(code),
            None => Self::Code(255),
        }
    }
}

/// What happens to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to standard output (or to its terminal).
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// So many bytes of output came while nobody followed, and are lost.
    Skipped(u64),
    /// It ended; the last event.
    Exited(ExitStatus),
}

/// A process that was started or attached to.
#[derive(Debug)]
pub struct ExecSession {
    /// Its input.
    pub stdin: StdinSink,
    /// Its output and its end.
    pub events: ExecEvents,
    /// Everything else; can be cloned.
    pub control: ProcessControl,
    /// Its pid in the guest.
    pub pid: u32,
}

/// Output and end of a process.
#[derive(Debug)]
pub struct ExecEvents {
    stream: Streaming<pb::ExecEvent>,
    offset: u64,
    exited: bool,
    // Holds the connection open for as long as somebody listens.
    _client: AgentClient,
}

impl ExecEvents {
    /// The next event; `None` after [`ExecEvent::Exited`]. Cancel safe.
    ///
    /// # Errors
    /// [`CallError::LinkLost`] when the guest goes away before the process has ended.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, CallError> {
        const OP: &str = "exec";
        while !self.exited {
            let message = self.stream.message().await;
            let Some(event) = message.map_err(|s| CallError::from_status(OP, &s))? else {
                return Err(CallError::LinkLost { op: OP });
            };
            match event.event {
                Some(Event::Output(output)) => {
                    self.offset = output.offset.saturating_add(output.data.len() as u64);
                    return Ok(Some(match output.stream() {
                        pb::Stream::Stderr => ExecEvent::Stderr(output.data),
                        _ => ExecEvent::Stdout(output.data),
                    }));
                }
                Some(Event::Skipped(skipped)) => {
                    self.offset = self.offset.saturating_add(skipped.bytes);
                    return Ok(Some(ExecEvent::Skipped(skipped.bytes)));
                }
                Some(Event::Exited(exited)) => {
                    self.exited = true;
                    return Ok(Some(ExecEvent::Exited(ExitStatus::from_pb(&exited))));
                }
                Some(Event::Started(_) | Event::StartFailed(_)) | None => {}
            }
        }
        Ok(None)
    }

    /// Where to attach again to miss nothing: the offset after the last output seen.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Signals, window size and name of a process.
#[derive(Clone, Debug)]
pub struct ProcessControl {
    client: AgentClient,
    process: String,
}

impl ProcessControl {
    /// The id that the caller gave it.
    #[must_use]
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Sends a signal to the process's group.
    ///
    /// # Errors
    /// [`CallError::NotFound`] when it has ended.
    pub async fn signal(&self, signal: i32) -> Result<(), CallError> {
        self.client
            .signal(&self.process, signal, pb::SignalScope::Group)
            .await
    }

    /// Kills the process and everything it left behind.
    ///
    /// # Errors
    /// As [`AgentClient::signal`].
    pub async fn kill_all(&self) -> Result<(), CallError> {
        self.client
            .signal(&self.process, 9, pb::SignalScope::Cgroup)
            .await
    }

    /// Tells its terminal's new size.
    ///
    /// # Errors
    /// [`CallError`]; refused when it has no terminal.
    pub async fn resize(&self, size: PtySize) -> Result<(), CallError> {
        self.client.resize(&self.process, size).await
    }
}

impl AgentClient {
    /// Starts a process. It lives on when the session is dropped.
    ///
    /// # Errors
    /// [`ExecError`] says which part of the request the guest could not honour.
    pub async fn exec(&self, start: ExecStart) -> Result<ExecSession, ExecError> {
        let process = start.process.clone();
        let mut grpc = self.grpc();
        let request = Request::new(start.into_request());
        let begun = self.within("exec", async {
            let mut stream = grpc.exec(request).await?.into_inner();
            let first = stream.message().await?;
            Ok((stream, first))
        });
        let (stream, first) = begun.await?;
        match first.and_then(|e| e.event) {
            Some(Event::Started(started)) => Ok(self.session(process, stream, started.pid, 0)),
            Some(Event::StartFailed(failed)) => Err(ExecError::from_failure(failed)),
            _ => Err(CallError::LinkLost { op: "exec" }.into()),
        }
    }

    /// Follows a process that runs or has ended, from an offset of its output.
    ///
    /// # Errors
    /// [`CallError::NotFound`] when the agent does not know the process (any more).
    pub async fn attach(&self, process: &str, offset: u64) -> Result<ExecSession, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::AttachRequest {
            process: process.to_owned(),
            offset,
        });
        let begun = self.within("attach", async {
            let mut stream = grpc.attach(request).await?.into_inner();
            let first = stream.message().await?;
            Ok((stream, first))
        });
        let (stream, first) = begun.await?;
        match first.and_then(|e| e.event) {
            Some(Event::Started(started)) => {
                Ok(self.session(process.to_owned(), stream, started.pid, offset))
            }
            _ => Err(CallError::LinkLost { op: "attach" }),
        }
    }

    fn session(
        &self,
        process: String,
        stream: Streaming<pb::ExecEvent>,
        pid: u32,
        offset: u64,
    ) -> ExecSession {
        ExecSession {
            stdin: StdinSink::new(self.clone(), process.clone()),
            events: ExecEvents {
                stream,
                offset,
                exited: false,
                _client: self.clone(),
            },
            control: ProcessControl {
                client: self.clone(),
                process,
            },
            pid,
        }
    }

    /// Sends a signal to a process that [`exec`](Self::exec) started.
    ///
    /// # Errors
    /// [`CallError::NotFound`] when it has ended or never was.
    pub async fn signal(
        &self,
        process: &str,
        signal: i32,
        scope: pb::SignalScope,
    ) -> Result<(), CallError> {
        let mut grpc = self.grpc();
        let message = pb::SignalRequest {
            process: process.to_owned(),
            signal,
            scope: scope.into(),
        };
        let request = Request::new(message);
        self.within("signal", grpc.signal(request))
            .await
            .map(|_| ())
    }

    /// Tells a process's terminal its new size.
    ///
    /// # Errors
    /// [`CallError`]; refused when it has no terminal.
    pub async fn resize(&self, process: &str, size: PtySize) -> Result<(), CallError> {
        let mut grpc = self.grpc();
        let message = pb::ResizeRequest {
            process: process.to_owned(),
            size: Some(size.into_pb()),
        };
        let request = Request::new(message);
        self.within("resize", grpc.resize(request))
            .await
            .map(|_| ())
    }

    /// The processes that the agent started and remembers.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn processes(&self) -> Result<Vec<pb::ProcessInfo>, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::ProcessesRequest {});
        let reply = self.within("processes", grpc.processes(request)).await?;
        Ok(reply.into_inner().processes)
    }
}
