//! The host's side of Firecracker's vsock: a unix socket on which a port of the guest is asked for, and one beside it
//! for each port of the host that a guest may ask for.
//!
//! ```text
//!   CONNECT 10320 ─► no driver yet: Firecracker holds it ─► driver, no listener: refused
//!                                                               │
//!                    bell ◄─ the agent listens, and rings ──────┴─► CONNECT 10320 ─► OK
//! ```
//!
//! A listener that is slow looks like none: a request that the guest has not answered within 2 s Firecracker gives up,
//! without a word. An agent that was restored does not ring any more, so after a while it is asked without.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::lchown;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cowslip_host::process::Credentials;
use rustix::fs::{Mode, OFlags, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::socket;

/// The longest answer: `OK` and a port.
const ANSWER_MAX: usize = 32;
/// Port of the host on which the agent rings (`cowslip_proto::limits::BELL_PORT`).
const BELL_PORT: u32 = 10_321;
/// After a refusal, how long to wait for the bell.
const AGAIN: Duration = Duration::from_secs(1);

/// Where Firecracker is spoken with of its guest's ports.
pub(super) struct Vsock<'a> {
    /// Its socket; in a jail among files that are not to be trusted.
    pub(super) socket: &'a Path,
    /// A directory of the engine's own, on the same file system.
    pub(super) own: &'a Path,
    /// The user of its jail.
    pub(super) user: Option<&'a Credentials>,
}

/// Connects to a port of the guest as soon as somebody listens there. There is no bound: the caller has
/// one.
pub(super) async fn connect(at: &Vsock<'_>, port: u32) -> io::Result<UnixStream> {
    if let Some(stream) = attempt(at.socket, port).await? {
        return Ok(stream);
    }
    // Who listens from now on finds it.
    let bell = Bell::hang(at)?;
    loop {
        if let Some(stream) = attempt(at.socket, port).await? {
            return Ok(stream);
        }
        if let Ok(rung) = timeout(AGAIN, bell.rung()).await {
            rung?;
        }
    }
}

/// A port of the host on which the guest's agent rings.
struct Bell {
    listener: UnixListener,
    path: PathBuf,
}

impl Bell {
    fn hang(at: &Vsock<'_>) -> io::Result<Self> {
        let made = at.own.join("bell");
        remove(&made)?;
        // Its whole path may be longer than an address.
        let own = open(
            at.own,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let short = format!("/proc/self/fd/{}/bell", own.as_raw_fd());
        let listener = StdUnixListener::bind(short)?;
        listener.set_nonblocking(true)?;
        if let Some(user) = at.user {
            lchown(&made, Some(user.uid), Some(user.gid))?;
        }
        // Whole when it is there; a link that somebody put there is replaced, not followed.
        let path = beside(at.socket, BELL_PORT);
        std::fs::rename(&made, &path)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { listener, path })
    }

    async fn rung(&self) -> io::Result<()> {
        self.listener.accept().await.map(drop)
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // It goes with the machine's directory otherwise, and the next one replaces it.
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The socket on which Firecracker looks for a port of the host.
fn beside(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// None where the guest does not listen.
async fn attempt(socket: &Path, port: u32) -> io::Result<Option<UnixStream>> {
    let mut stream = socket::connect(socket).await?;
    let request = format!("CONNECT {port}\n");
    if let Err(error) = stream.write_all(request.as_bytes()).await {
        return refused(error);
    }
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    // Byte by byte: what follows the line is the guest's already.
    while answer.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) if answer.len() < ANSWER_MAX => answer.push(byte),
            Ok(_) => break,
            Err(error) => return refused(error),
        }
    }
    let is_port = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    match answer
        .strip_prefix(b"OK ")
        .and_then(|rest| rest.strip_suffix(b"\n"))
    {
        Some(text) if is_port(text) => Ok(Some(stream)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what answers is no vsock of a Firecracker",
        )),
    }
}

/// A connection that is closed without an answer is a refusal.
fn refused(error: io::Error) -> io::Result<Option<UnixStream>> {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    async fn answer(listener: &UnixListener, with: &[u8]) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "CONNECT 77\n");
        stream.write_all(with).await.unwrap();
    }

    fn at(dir: &Path) -> (PathBuf, UnixListener) {
        std::fs::create_dir(dir.join("self")).unwrap();
        let socket = dir.join("self/vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        (socket, listener)
    }

    /// A connection to port 77 by the socket `self/vsock` below `dir`.
    async fn connect_below(dir: &Path) -> io::Result<UnixStream> {
        let at = Vsock {
            socket: &dir.join("self/vsock"),
            own: dir,
            user: None,
        };
        connect(&at, 77).await
    }

    #[tokio::test]
    async fn a_port_is_asked_for_again_when_the_guest_rings() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, listener) = at(dir.path());
        let bell = dir.path().join("self/vsock_10321");
        // What stands in the way is replaced, and no link is followed.
        std::os::unix::fs::symlink(dir.path().join("other"), &bell).unwrap();
        // An engine that was killed left it.
        let left = StdUnixListener::bind(dir.path().join("bell")).unwrap();
        drop(left);
        let guest = async {
            answer(&listener, b"").await;
            answer(&listener, b"OK 10").await;
            // Not before it is rung for.
            let early = tokio::time::timeout(Duration::from_millis(50), listener.accept());
            assert!(early.await.is_err(), "it was asked before it rang");
            drop(
                UnixStream::connect(beside(&socket, BELL_PORT))
                    .await
                    .unwrap(),
            );
            answer(&listener, b"").await;
            drop(UnixStream::connect(&bell).await.unwrap());
            answer(&listener, b"OK 1073741824\nhello").await;
        };
        let (stream, ()) = tokio::join!(connect_below(dir.path()), guest);
        let mut rest = String::new();
        stream.unwrap().read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello", "what the guest says is the caller's");
        let left: Vec<_> = std::fs::read_dir(dir.path().join("self"))
            .unwrap()
            .collect();
        assert_eq!(left.len(), 1, "the bell is gone: {left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_is_slow_and_does_not_ring_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let (_, listener) = at(dir.path());
        let guest = async {
            for _ in 0..5 {
                answer(&listener, b"").await;
            }
            answer(&listener, b"OK 1\n").await;
        };
        let (stream, ()) = tokio::join!(connect_below(dir.path()), guest);
        stream.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_listens_needs_no_bell() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, listener) = at(dir.path());
        // Nothing could be hung there.
        std::fs::create_dir(beside(&socket, BELL_PORT)).unwrap();
        let (stream, ()) = tokio::join!(connect_below(dir.path()), answer(&listener, b"OK 1\n"));
        stream.unwrap();
        let (failed, ()) = tokio::join!(connect_below(dir.path()), answer(&listener, b""));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }

    #[tokio::test]
    async fn what_is_no_vsock_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(connect_below(dir.path()).await.is_err());
        let (_, listener) = at(dir.path());
        for nonsense in [&b"NO 1\n"[..], b"OK \n", b"OK x\n", &[b'9'; 100]] {
            let (failed, ()) = tokio::join!(connect_below(dir.path()), answer(&listener, nonsense));
            assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
