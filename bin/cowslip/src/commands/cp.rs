//! `cp`: files between a sandbox and this host, as docker copies them.

use std::io::{self, IsTerminal, Read, Write};

use bytes::Bytes;
use clap::Args;
use cowslip_model::api::ErrorCode;
use tokio::sync::mpsc;

use super::Context;
use crate::client::{Octets, Path, Upload};
use crate::cp::{Landing, Place, Remote, Sources, Target, land_in_guest, pack, unpack};
use crate::exit::Failure;
use crate::output;

/// Pieces on their way between a thread and a connection.
const PIECES: usize = 4;
/// Bytes of a piece.
const PIECE: usize = 128 << 10;

/// Copy files between a sandbox and this host.
#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// Make links that point out of the copied tree, too
    #[arg(long)]
    keep_links: bool,
    /// SANDBOX:PATH, a path here, or - for a tar on standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// SANDBOX:PATH, a path here, or - for a tar on standard output
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

impl Cp {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let source = Place::parse(&self.source)?;
        let destination = Place::parse(&self.destination)?;
        match (source, destination) {
            (Place::Remote(from), Place::Stream) => to_stdout(context, &from).await?,
            (Place::Remote(from), Place::Local(to)) => {
                let octets = read(context, &from).await?;
                let (reader, feed) = reader(octets);
                let keep_links = self.keep_links;
                let work = tokio::task::spawn_blocking(move || {
                    unpack::unpack(reader, &from, &to, keep_links)
                });
                let (fed, done) = tokio::join!(feed, work);
                let report = done.map_err(died)?;
                // What the engine says about a broken stream explains the unpacking's own error.
                fed?;
                for skipped in report?.skipped {
                    output::note(&format!("cowslip: left out {skipped}"));
                }
            }
            (Place::Stream, Place::Remote(to)) => from_stdin(context, &to).await?,
            (Place::Local(from), Place::Remote(to)) => {
                let sources = Sources::look(&from)?;
                let target = look(context, &to).await?;
                let landing = land_in_guest(&sources, &to, &target)?;
                write(context, &to, landing, move |landing, out| {
                    pack::pack(&sources, landing, out)
                })
                .await?;
            }
            (Place::Remote(_), Place::Remote(_)) => {
                return Err(
                    Failure::usage("copying between two sandboxes is not supported")
                        .hint("cowslip cp A:PATH - | cowslip cp - B:DIRECTORY"),
                );
            }
            _ => {
                return Err(
                    Failure::usage("neither source nor destination is in a sandbox")
                        .hint("write SANDBOX:PATH for the one that is"),
                );
            }
        }
        Ok(0)
    }
}

fn died(error: tokio::task::JoinError) -> Failure {
    Failure::new(
        ErrorCode::Internal,
        format!("the copying thread died: {error}"),
    )
}

fn route(remote: &Remote, path: &str) -> Path {
    Path::to("sandboxes")
        .segment(&remote.sandbox)
        .segment("archive")
        .query("path", path)
}

async fn read(context: &Context, from: &Remote) -> Result<Octets, Failure> {
    context.client.octets(route(from, from.path())).await
}

/// What is at a place in the guest: the first entry of its archive says.
async fn look(context: &Context, to: &Remote) -> Result<Target, Failure> {
    let octets = match context.client.octets(route(to, to.path())).await {
        Ok(octets) => octets,
        Err(failure) if failure.error.code == ErrorCode::NotFound => {
            // The place may be free, or the sandbox may not be there at all: the upload will tell.
            return Ok(Target::Absent);
        }
        Err(failure) => return Err(failure),
    };
    let (reader, feed) = reader(octets);
    let look = tokio::task::spawn_blocking(move || Target::of_archive(reader));
    // The rest of the archive is not wanted: the feed ends when its reader does.
    let (_, target) = tokio::join!(feed, look);
    target.map_err(died)?
}

async fn to_stdout(context: &Context, from: &Remote) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::usage("a tar is no text for a terminal")
            .hint("redirect it: cowslip cp SANDBOX:PATH - > files.tar"));
    }
    let mut octets = read(context, from).await?;
    while let Some(piece) = octets.next().await? {
        output::raw(&piece)?;
    }
    Ok(())
}

async fn from_stdin(context: &Context, to: &Remote) -> Result<(), Failure> {
    if io::stdin().is_terminal() {
        return Err(
            Failure::usage("a tar is to come from standard input, a terminal")
                .hint("pipe it in: cowslip cp - SANDBOX:DIRECTORY < files.tar"),
        );
    }
    let landing = Landing::into(to.path());
    write(context, to, landing, |_, out| {
        io::copy(&mut io::stdin().lock(), out)
            .map(drop)
            .map_err(|error| Failure::io("read standard input", &error))
    })
    .await
}

/// Sends what `produce` writes to the landing's directory in the guest.
async fn write(
    context: &Context,
    to: &Remote,
    landing: Landing,
    produce: impl FnOnce(&Landing, &mut dyn Write) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let path = route(to, &landing.directory);
    let (sender, queue) = mpsc::channel(PIECES);
    let work = tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(
            PIECE,
            Pipe {
                sender: sender.clone(),
            },
        );
        let result = produce(&landing, &mut out).and_then(|()| {
            out.flush()
                .map_err(|error| Failure::io("send the archive", &error))
        });
        if result.is_err() {
            // What was not flushed is not sent, and the upload is broken off.
            let _ = out.into_parts();
            let _ = sender.blocking_send(Err(io::Error::other("the source could not be read")));
        }
        result
    });
    let (sent, produced) = tokio::join!(context.client.put_stream(path, Upload(queue)), work);
    match (produced.map_err(died)?, sent) {
        // The engine's own answer explains why it took no more.
        (Err(produced), Err(sent)) if produced.error.message.starts_with("send the archive") => {
            Err(sent)
        }
        (Err(produced), _) => Err(produced),
        (Ok(()), sent) => sent,
    }
}

/// Writes into an upload.
struct Pipe {
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pipe {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(buffer);
        self.sender
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A download for code that blocks, and the future that feeds it.
fn reader(mut octets: Octets) -> (Download, impl Future<Output = Result<(), Failure>>) {
    let (sender, pieces) = mpsc::channel(PIECES);
    let feed = async move {
        loop {
            let piece = octets.next().await;
            let (piece, end) = match piece {
                Ok(Some(piece)) => (Some(piece), None),
                Ok(None) => (None, Some(Ok(()))),
                Err(failure) => (None, Some(Err(failure))),
            };
            if let Some(end) = end {
                if end.is_err() {
                    let _ = sender.send(None).await;
                }
                return end;
            }
            if sender.send(piece).await.is_err() {
                return Ok(());
            }
        }
    };
    (
        Download {
            pieces,
            current: Bytes::new(),
        },
        feed,
    )
}

/// The reading end: pieces, or `None` for a stream that broke.
struct Download {
    pieces: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.current = piece,
                Some(None) => return Err(io::ErrorKind::ConnectionAborted.into()),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
