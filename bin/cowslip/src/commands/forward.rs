//! `forward`: ports of this host that lead to ports of a sandbox.
//!
//! ```text
//!  local ─► speak ── stdin, stdin_end, output_taken ──► engine
//!  local ◄─ write ◄─ queue ◄─ listen ◄── output, output_end ─┘
//! ```
//!
//! The engine is heard at all times: the queue holds at most what it may send beyond what was taken.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use clap::Args;
use cowslip_model::SandboxState;
use cowslip_model::api::{ClientMessage, ErrorCode, ForwardRequest, Sandbox, ServerMessage};
use futures_util::future::{Either, select};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Context;
use crate::client::{Client, Incoming, Path, Said, Sender};
use crate::exit::Failure;
use crate::output;

/// Bytes that may be on the way to the guest.
const WINDOW: u64 = 256 << 10;
/// Bytes read at once.
const PIECE: usize = 32 << 10;

/// Let ports of this host lead to ports of a running sandbox.
#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Where to listen on this host (127.0.0.1 unless it says; port 0 takes a free one), and the port of
    /// the guest's 127.0.0.1 that connections go to
    #[arg(value_name = "[ADDR:]HOSTPORT:GUESTPORT", required = true)]
    ports: Vec<Mapping>,
}

/// A place on this host, and a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    host: SocketAddr,
    guest: u16,
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |port: &str| {
            let parsed = port.parse::<u16>();
            parsed.map_err(|_| format!("\"{port}\" is no port: give a number up to 65535"))
        };
        let (host, guest) = text
            .rsplit_once(':')
            .ok_or("give two ports, as in 8080:80")?;
        let (address, host) = match host.rsplit_once(':') {
            None => (IpAddr::from(Ipv4Addr::LOCALHOST), host),
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                let parsed = bare.unwrap_or(address).parse();
                let address = parsed.map_err(|_| format!("\"{address}\" is no address"))?;
                (address, host)
            }
        };
        let guest = port(guest)?;
        if guest == 0 {
            return Err("the guest's port cannot be 0".to_owned());
        }
        Ok(Self {
            host: SocketAddr::new(address, port(host)?),
            guest,
        })
    }
}

/// A mapping that is in place, as it is shown.
#[derive(Debug, Serialize)]
struct Listening {
    address: SocketAddr,
    guest_port: u16,
}

impl Forward {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = Path::to("sandboxes").segment(&self.sandbox);
        let sandbox: Sandbox = context.client.get(path.clone()).await?;
        if sandbox.state != SandboxState::Running {
            let message = format!(
                "cannot forward to sandbox \"{}\": it is {}",
                sandbox.name, sandbox.state
            );
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        let mut listeners = Vec::new();
        for mapping in &self.ports {
            let failed = |error| Failure::io(format!("listen on \"{}\"", mapping.host), &error);
            let listener = TcpListener::bind(mapping.host).await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            listeners.push((listener, address, mapping.guest));
        }
        for &(_, address, guest_port) in &listeners {
            let listening = Listening {
                address,
                guest_port,
            };
            if context.output.json {
                // One a line, as they are in place.
                let line = serde_json::to_string(&listening)
                    .map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
                output::line(&line)?;
            } else if context.output.quiet {
                output::line(&address.to_string())?;
            } else {
                let name = &sandbox.name;
                output::line(&format!("{address} leads to port {guest_port} of {name}"))?;
            }
        }
        let path = path.segment("forward");
        let mut all = JoinSet::new();
        for (listener, address, port) in listeners {
            let way = Way {
                client: context.client.clone(),
                path: path.clone(),
                request: ForwardRequest { port },
                output: context.output,
            };
            all.spawn(async move {
                let error = way.serve(listener).await;
                Failure::io(format!("listen on \"{address}\""), &error)
            });
        }
        // They go on until one fails, or the user has had enough.
        match all.join_next().await {
            Some(Ok(failure)) => Err(failure),
            Some(Err(error)) => Err(Failure::new(ErrorCode::Internal, error.to_string())),
            None => Ok(0),
        }
    }
}

/// The way to a port of a guest.
#[derive(Debug, Clone)]
struct Way {
    client: Client,
    path: Path,
    request: ForwardRequest,
    output: output::Output,
}

impl Way {
    async fn serve(&self, listener: TcpListener) -> std::io::Error {
        loop {
            let (local, _) = match listener.accept().await {
                Ok(accepted) => accepted,
                // One that was gone before it was taken.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return error,
            };
            let way = self.clone();
            tokio::spawn(async move {
                // The others go on.
                if let Err(failure) = way.carry(local).await
                    && !way.output.quiet
                {
                    output::failure(&failure);
                }
            });
        }
    }

    /// Carries a connection to its end.
    async fn carry(&self, mut local: TcpStream) -> Result<(), Failure> {
        // What comes has waited for others already.
        let _ = local.set_nodelay(true);
        let carried = self.try_carry(&mut local).await;
        if !matches!(carried, Ok(true)) {
            // Whoever connected is to see that this is no proper end.
            let _ = local.set_zero_linger();
        }
        carried.map(drop)
    }

    /// False: the local side broke the connection off.
    async fn try_carry(&self, local: &mut TcpStream) -> Result<bool, Failure> {
        let session = self
            .client
            .session(self.path.clone(), &self.request)
            .await?;
        let (reader, writer) = local.split();
        let (queue, queued) = mpsc::unbounded_channel();
        let (taken, seen) = watch::channel(0);
        let (written, passed_on) = watch::channel(0);
        let speaking = speak(session.sender, reader, seen, passed_on);
        let moving = async {
            let listening = pin!(listen(session.incoming, queue, &taken));
            let writing = pin!(write(writer, queued, &written));
            match select(listening, writing).await {
                Either::Left((heard, writing)) => {
                    heard?;
                    Ok(writing.await)
                }
                Either::Right((false, _)) => Ok(false),
                Either::Right((true, listening)) => listening.await.map(|()| true),
            }
        };
        tokio::select! {
            biased;
            ended = moving => ended,
            () = speaking => Ok(false),
        }
    }
}

/// Sends what the local side says, and how much it has taken. Comes back only when it breaks off.
async fn speak(
    mut sender: Sender,
    mut local: ReadHalf<'_>,
    mut taken: watch::Receiver<u64>,
    mut passed_on: watch::Receiver<u64>,
) {
    let (mut sent, mut ended) = (0_u64, false);
    let mut piece = BytesMut::zeroed(PIECE);
    loop {
        let room = sent.saturating_sub(*taken.borrow_and_update()) < WINDOW;
        // That the engine takes no more is for its own last words to explain.
        tokio::select! {
            changed = passed_on.changed() => {
                let bytes = *passed_on.borrow_and_update();
                let message = ClientMessage::OutputTaken { bytes };
                if changed.is_err() || !sender.message(&message).await.unwrap_or(false) {
                    return std::future::pending().await;
                }
            }
            read = local.read(&mut piece), if room && !ended => match read {
                Ok(0) => {
                    ended = true;
                    let _ = sender.message(&ClientMessage::StdinEnd).await;
                }
                Ok(length) => {
                    sent += length as u64;
                    sender.stdin(&piece[..length]).await;
                }
                Err(_) => return,
            },
            changed = taken.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
}

/// Hears the engine until the connection's proper end.
async fn listen(
    mut incoming: Incoming,
    queue: mpsc::UnboundedSender<Bytes>,
    taken: &watch::Sender<u64>,
) -> Result<(), Failure> {
    let mut queue = Some(queue);
    while let Some(said) = incoming.next().await? {
        match said {
            Said::Stdout(bytes) => {
                if let Some(queue) = &queue {
                    // The writing half knows when the local side takes no more.
                    let _ = queue.send(bytes);
                }
            }
            Said::Message(ServerMessage::StdinTaken { bytes }) => {
                taken.send_replace(bytes);
            }
            Said::Message(ServerMessage::OutputEnd) => queue = None,
            Said::Message(ServerMessage::Failed { error }) => return Err(error.into()),
            Said::Message(_) | Said::Stderr(_) => {}
        }
    }
    if queue.is_some() {
        let message = "the engine closed the session before the connection ended";
        return Err(Failure::new(ErrorCode::Internal, message));
    }
    Ok(())
}

/// Writes what came to the local side; false when it takes no more.
async fn write(
    mut local: WriteHalf<'_>,
    mut queued: mpsc::UnboundedReceiver<Bytes>,
    written: &watch::Sender<u64>,
) -> bool {
    while let Some(bytes) = queued.recv().await {
        if local.write_all(&bytes).await.is_err() {
            return false;
        }
        written.send_modify(|so_far| *so_far += bytes.len() as u64);
    }
    local.shutdown().await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_says_where_and_whither() {
        let parsed = |text: &str| {
            let mapping: Mapping = text.parse().unwrap();
            (mapping.host.to_string(), mapping.guest)
        };
        assert_eq!(parsed("8080:80"), ("127.0.0.1:8080".to_owned(), 80));
        assert_eq!(parsed("0:65535"), ("127.0.0.1:0".to_owned(), 65535));
        assert_eq!(parsed("0.0.0.0:8080:80"), ("0.0.0.0:8080".to_owned(), 80));
        assert_eq!(parsed("[::1]:8080:80"), ("[::1]:8080".to_owned(), 80));
        for bad in [
            "",
            "80",
            "80:",
            ":80",
            "80:0",
            "65536:80",
            "80:65536",
            "-1:80",
            "here:80:80",
            "1.2.3:80:80",
            "[::1:80:80",
            "a:b:c:d",
        ] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad}");
        }
    }
}
