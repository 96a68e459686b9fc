//! The host's side of Firecracker's vsock: a unix socket on which a port of the guest is asked for.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::socket;

/// The longest answer: `OK` and a port.
const ANSWER_MAX: usize = 32;
/// Between two tries. Firecracker holds a request until the guest has a driver; in the moment between
/// the driver and the listener the guest refuses, and nothing tells the host when it no longer does.
const AGAIN: Duration = Duration::from_millis(5);

/// Connects to a port of the guest as soon as somebody listens there. There is no bound: the caller has
/// one.
pub(super) async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    loop {
        if let Some(stream) = attempt(socket, port).await? {
            return Ok(stream);
        }
        tokio::time::sleep(AGAIN).await;
    }
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
    use tokio::net::UnixListener;

    use super::*;

    async fn answer(listener: &UnixListener, with: &[u8]) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "CONNECT 77\n");
        stream.write_all(with).await.unwrap();
    }

    #[tokio::test]
    async fn a_port_is_asked_for_until_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = async {
            answer(&listener, b"").await;
            answer(&listener, b"OK 10").await;
            answer(&listener, b"OK 1073741824\nhello").await;
        };
        let (stream, ()) = tokio::join!(connect(&socket, 77), guest);
        let mut rest = String::new();
        stream.unwrap().read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello", "what the guest says is the caller's");
    }

    #[tokio::test]
    async fn what_is_no_vsock_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        assert!(connect(&socket, 77).await.is_err());
        let listener = UnixListener::bind(&socket).unwrap();
        for nonsense in [&b"NO 1\n"[..], b"OK \n", b"OK x\n", &[b'9'; 100]] {
            let (failed, ()) = tokio::join!(connect(&socket, 77), answer(&listener, nonsense));
            assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
