//! The agent run again as `cowslip-agent child`: turns itself into the process that was asked for.
//!
//! Between fork and exec almost nothing may be done safely, so the agent starts *itself* and the
//! new process, which has one thread and nothing to lose, enters its cgroup and session, takes its
//! terminal, becomes the user, enters the directory and executes the program. Whatever a hostile
//! disk makes slow or impossible (a hanging `/etc/passwd`, a directory on a dead mount) hits this
//! process and not the agent.
//!
//! Standard input is a socket to the agent. One message comes in: file descriptors for the
//! request, standard input, output and error, and the cgroup. Nothing goes out but a [`Failure`];
//! the socket closes by itself when the program is executed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cowslip_proto::pb::{EnvVar, StartFailure};
use prost::Message;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};

use super::user;
use crate::sys;

/// What to become. Travels in a memory file, so its size is no matter.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) argv: Vec<Vec<u8>>,
    /// The sandbox's environment, then the caller's; later ones win.
    #[prost(message, repeated, tag = "2")]
    pub(crate) env: Vec<EnvVar>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) cwd: Vec<u8>,
    #[prost(string, tag = "4")]
    pub(crate) user: String,
    #[prost(bool, tag = "5")]
    pub(crate) pty: bool,
}

/// Why the program was not executed.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Failure {
    #[prost(enumeration = "StartFailure", tag = "1")]
    pub(crate) kind: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: StartFailure, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            message: message.into(),
        }
    }

    fn other(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |e| Self::new(StartFailure::Other, format!("cannot {what}: {e}"))
    }
}

/// Descriptors that come with the one message, in this order; the cgroup may be missing.
pub(crate) const DESCRIPTORS: usize = 5;
/// Open files of a process that does not ask for more.
const USUAL_FILES: u64 = 1024;
/// Search path of a process whose environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs as the helper; returns only when it failed.
pub(crate) fn run() -> std::process::ExitCode {
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return 127.into();
    };
    let mut socket = UnixStream::from(socket);
    let failure = become_it(&socket);
    // The agent may be gone; then nobody wants to know.
    let _ = socket.write_all(&failure.encode_to_vec());
    127.into()
}

fn become_it(socket: &UnixStream) -> Failure {
    match prepare(socket).and_then(|(request, home)| execute(&request, home)) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn prepare(socket: &UnixStream) -> Result<(Request, Option<String>), Failure> {
    let fds = receive(socket).map_err(Failure::other("take over descriptors"))?;
    let mut fds = fds.into_iter();
    let (Some(spec), Some(stdin), Some(stdout), Some(stderr)) =
        (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err(Failure::new(
            StartFailure::Other,
            "the agent sent too few descriptors",
        ));
    };
    let mut bytes = Vec::new();
    File::from(spec)
        .read_to_end(&mut bytes)
        .map_err(Failure::other("read the request"))?;
    let request = Request::decode(bytes.as_slice())
        .map_err(|e| Failure::new(StartFailure::Other, format!("cannot read the request: {e}")))?;
    if let Some(cgroup) = fds.next() {
        // Only lost if the guest took its cgroups apart: no reason not to run.
        let _ = File::from(cgroup).write_all(b"0");
    }
    limit_files();
    sys::default_signals();
    rustix::process::setsid().map_err(|e| Failure::other("begin a session")(e.into()))?;
    let stdio = || {
        if request.pty {
            rustix::process::ioctl_tiocsctty(&stdin)?;
        }
        rustix::stdio::dup2_stdin(&stdin)?;
        rustix::stdio::dup2_stdout(&stdout)?;
        rustix::stdio::dup2_stderr(&stderr)
    };
    stdio().map_err(|e| Failure::other("set up standard input and output")(e.into()))?;

    let who = user::resolve(&request.user, Path::new("/"))
        .map_err(|e| Failure::new(StartFailure::UnknownUser, e.to_string()))?;
    if request.pty {
        // So that the user can open /dev/tty's device again, as login(1) makes it.
        let _ = rustix::fs::fchown(&stdin, Some(Uid::from_raw(who.uid)), None);
    }
    let own = rustix::process::getuid().as_raw();
    if own == 0 || own != who.uid {
        // This process has one thread, so what changes the thread changes the process.
        let groups = who
            .groups
            .iter()
            .copied()
            .map(Gid::from_raw)
            .collect::<Vec<_>>();
        let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
        rustix::thread::set_thread_groups(&groups)
            .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
            .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
            .map_err(|e| {
                let message = format!("cannot become user \"{}\": {e}", request.user);
                Failure::new(StartFailure::UnknownUser, message)
            })?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    enter(&request, who.home.as_deref())?;
    Ok((request, who.home))
}

/// The agent's own bound is high. Programs get the usual one, which they may raise: some take
/// time in proportion to it, and select(2) cannot go beyond it.
fn limit_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = Some(current.map_or(USUAL_FILES, |c| c.min(USUAL_FILES)));
    // Lowering is always allowed.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}

fn receive(socket: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(fds)
}

/// Enters the working directory, as the user: what the user may not enter is refused.
fn enter(request: &Request, home: Option<&str>) -> Result<(), Failure> {
    if request.cwd.is_empty() {
        let entered =
            home.is_some_and(|h| h.starts_with('/') && std::env::set_current_dir(h).is_ok());
        if entered {
            return Ok(());
        }
        return std::env::set_current_dir("/").map_err(Failure::other("enter \"/\""));
    }
    let cwd = Path::new(OsStr::from_bytes(&request.cwd));
    std::env::set_current_dir(cwd).map_err(|e| {
        let message = format!("cannot enter working directory \"{}\": {e}", cwd.display());
        Failure::new(StartFailure::BadCwd, message)
    })
}

fn execute(request: &Request, home: Option<String>) -> Result<std::convert::Infallible, Failure> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &[u8], value: &[u8]| {
        let (name, value) = (
            OsString::from_vec(name.to_vec()),
            OsString::from_vec(value.to_vec()),
        );
        match env.iter_mut().find(|(n, _)| *n == name) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    };
    set(b"PATH", DEFAULT_PATH.as_bytes());
    set(
        b"HOME",
        home.as_deref()
            .filter(|h| !h.is_empty())
            .unwrap_or("/")
            .as_bytes(),
    );
    if request.pty {
        set(b"TERM", b"xterm");
    }
    for var in &request.env {
        set(&var.name, &var.value);
    }
    let path = env
        .iter()
        .find(|(n, _)| n == "PATH")
        .map(|(_, v)| v.clone())
        .unwrap_or_default();

    let Some((program, args)) = request.argv.split_first() else {
        return Err(Failure::new(StartFailure::NotFound, "no command was given"));
    };
    let program = OsStr::from_bytes(program);
    let mut refused: Option<(PathBuf, io::Error)> = None;
    for candidate in candidates(program, &path) {
        let error = Command::new(&candidate)
            .arg0(program)
            .args(args.iter().map(|a| OsStr::from_bytes(a)))
            .env_clear()
            .envs(env.iter().map(|(n, v)| (n, v)))
            .exec();
        // As execvp(3): go on looking past what is not there, and remember what is in the way.
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) if !candidate.is_file() => {}
            _ => {
                refused.get_or_insert((candidate, error));
            }
        }
    }
    Err(match refused {
        None => {
            let message = format!("no program \"{}\" in the sandbox", program.display());
            Failure::new(StartFailure::NotFound, message)
        }
        Some((path, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
            let message = format!(
                "cannot execute \"{}\": its interpreter or dynamic linker is not in the sandbox",
                path.display()
            );
            Failure::new(StartFailure::NotFound, message)
        }
        Some((path, error)) => {
            let message = format!("cannot execute \"{}\": {error}", path.display());
            Failure::new(StartFailure::NotExecutable, message)
        }
    })
}

fn candidates(program: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    // An empty element means the working directory, as in every shell.
    std::env::split_paths(path)
        .map(|dir| {
            if dir.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                dir
            }
        })
        .map(|dir| dir.join(program))
        .collect()
}
