//! Starting a process: descriptors, the helper, and waiting for its word.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use cowslip_proto::pb::{self, StartFailure};
use prost::Message;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::helper::{DESCRIPTORS, Failure, Request};
use super::pump::{Source, readable};
use super::reaper::{Children, Exit};
use super::stdin::Stdin;
use crate::sys;

/// A process that was started and executes the program that was asked for.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) exit: oneshot::Receiver<Exit>,
    pub(crate) source: Source,
    pub(crate) stdin: Stdin,
    pub(crate) pty: Option<Arc<AsyncFd<OwnedFd>>>,
}

/// Largest failure message taken from the helper, in bytes.
const MAX_FAILURE: u64 = 16 * 1024;

/// Both ends of what a process reads and writes.
struct Plumbing {
    /// Standard input, output and error of the process.
    theirs: [OwnedFd; 3],
    source: Source,
    stdin: Stdin,
    pty: Option<Arc<AsyncFd<OwnedFd>>>,
}

/// Starts a process and waits until it executes its program.
pub(crate) async fn spawn(
    children: &Children,
    request: Request,
    pty: Option<pb::PtySize>,
    stdin: bool,
    cgroup: Option<impl AsFd>,
) -> Result<Spawned, Failure> {
    let failed = |e: io::Error| {
        Failure::new(
            StartFailure::Other,
            format!("cannot start a process in the sandbox: {e}"),
        )
    };
    let plumbing = match pty {
        Some(size) => terminal(size),
        None => pipes(stdin),
    };
    let plumbing = plumbing.map_err(failed)?;
    let spec = memory_file(&request.encode_to_vec()).map_err(failed)?;
    let (ours, helpers) = StdUnixStream::pair().map_err(failed)?;

    let mut command = Command::new("/proc/self/exe");
    // The helper needs nothing of the agent's environment.
    command.arg0("cowslip-agent").arg("child").env_clear();
    command.stdin(Stdio::from(OwnedFd::from(helpers)));
    let (pid, exit) = children.spawn(&mut command).map_err(failed)?;
    // From here on the process is in the table: whatever fails, its end is seen.
    drop(command);
    let mut fds = vec![spec.as_fd()];
    fds.extend(plumbing.theirs.iter().map(AsFd::as_fd));
    fds.extend(cgroup.as_ref().map(AsFd::as_fd));
    send(&ours, &fds).map_err(failed)?;
    drop(plumbing.theirs);

    match answer(ours).await.map_err(failed)? {
        Some(failure) => Err(failure),
        None => Ok(Spawned {
            pid,
            exit,
            source: plumbing.source,
            stdin: plumbing.stdin,
            pty: plumbing.pty,
        }),
    }
}

fn pipes(stdin: bool) -> io::Result<Plumbing> {
    let (their_in, in_) = pipe_with(PipeFlags::CLOEXEC)?;
    let (out, their_out) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err, their_err) = pipe_with(PipeFlags::CLOEXEC)?;
    let stdin = if stdin {
        rustix::io::ioctl_fionbio(&in_, true)?;
        Stdin::pipe(sys::watch(in_, Interest::WRITABLE)?)
    } else {
        // Its other end closes here: reading gives end of file.
        Stdin::none()
    };
    Ok(Plumbing {
        theirs: [their_in, their_out, their_err],
        source: Source::Pipes(readable(out)?, readable(err)?),
        stdin,
        pty: None,
    })
}

fn terminal(size: pb::PtySize) -> io::Result<Plumbing> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // By descriptor, not by name: the guest may have mounted anything over /dev/pts.
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    resize(master.as_fd(), size)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    let master = Arc::new(sys::watch(master, Interest::READABLE | Interest::WRITABLE)?);
    let copy = || rustix::io::fcntl_dupfd_cloexec(&slave, 3);
    Ok(Plumbing {
        theirs: [copy()?, copy()?, copy()?],
        source: Source::Pty(master.clone(), slave),
        stdin: Stdin::pty(master.clone()),
        pty: Some(master),
    })
}

/// Sets a terminal's window size; the kernel tells its foreground processes.
pub(crate) fn resize(master: BorrowedFd<'_>, size: pb::PtySize) -> io::Result<()> {
    let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = Winsize {
        ws_row: cells(size.rows),
        ws_col: cells(size.cols),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}

fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("cowslip-exec", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

fn send(socket: &StdUnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Waits until the helper has executed the program (the socket closes) or says why it did not.
async fn answer(socket: StdUnixStream) -> io::Result<Option<Failure>> {
    socket.set_nonblocking(true)?;
    let mut said = Vec::new();
    UnixStream::from_std(socket)?
        .take(MAX_FAILURE)
        .read_to_end(&mut said)
        .await?;
    if said.is_empty() {
        return Ok(None);
    }
    Failure::decode(said.as_slice())
        .map(Some)
        .map_err(io::Error::other)
}
