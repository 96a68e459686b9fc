//! `template import`: a directory is read by the engine, a tar is sent to it.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use cowslip_model::Name;
use cowslip_model::api::{DirectoryImportRequest, ErrorCode, ImportMessage, Template};
use indicatif::ProgressBar;
use tokio::sync::{mpsc, oneshot};

use super::COLLECTION;
use crate::client::{Lines, Path, Upload};
use crate::commands::{Context, on_this_host, values};
use crate::exit::Failure;
use crate::output::{self, progress::Progress};

/// Bytes read from the source at once.
const PIECE: usize = 256 << 10;
/// So many left-out entries are named.
const NAMED: usize = 10;

/// Import a root file system.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Its name
    #[arg(value_name = "NAME", value_parser = values::name)]
    name: Name,
    /// A directory, a tar, or - for standard input
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
}

/// What is there now.
struct Imported {
    template: Template,
    skipped: Vec<String>,
    new: bool,
}

impl Import {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let shown = output::stderr_is_terminal() && !context.output.quiet;
        let imported = if self.source.as_os_str() == "-" {
            if io::stdin().is_terminal() {
                return Err(
                    Failure::usage("a tar is to come from standard input, a terminal")
                        .hint("pipe it in: cowslip template import NAME - < rootfs.tar"),
                );
            }
            let progress = Progress::new(shown, None);
            send(context, &self.name, io::stdin(), "standard input", progress).await?
        } else {
            let failed = |error| Failure::io(format!("read \"{}\"", self.source.display()), &error);
            let kind = std::fs::metadata(&self.source).map_err(failed)?;
            if kind.is_dir() {
                self.directory(context, Progress::new(shown, None)).await?
            } else {
                let file = File::open(&self.source).map_err(failed)?;
                let size = kind.is_file().then_some(kind.len());
                let what = format!("\"{}\"", self.source.display());
                send(context, &self.name, file, &what, Progress::new(shown, size)).await?
            }
        };
        report(context, &self.name, &imported)?;
        Ok(0)
    }

    async fn directory(&self, context: &Context, progress: Progress) -> Result<Imported, Failure> {
        let path = on_this_host(&self.source)?;
        let request = DirectoryImportRequest {
            name: self.name.clone(),
            path,
        };
        let route = Path::to(COLLECTION).segment("directory");
        let lines = context.client.post_lines(route, &request).await?;
        follow(lines, &progress, true).await
    }
}

/// Sends a tar and follows the import.
async fn send(
    context: &Context,
    name: &Name,
    source: impl Read + Send + 'static,
    what: &str,
    progress: Progress,
) -> Result<Imported, Failure> {
    let (pieces, queue) = mpsc::channel(4);
    let (tell, mut told) = oneshot::channel();
    let bar = progress.reader();
    std::thread::spawn(move || {
        if let Err(error) = read_all(source, &pieces, &bar) {
            // The error comes first: whoever sees the upload break finds it there.
            let _ = tell.send(error);
            let _ = pieces.blocking_send(Err(io::ErrorKind::Other.into()));
        }
    });
    let route = Path::to(COLLECTION).query("name", name.as_str());
    let imported = async {
        let lines = context.client.post_stream(route, Upload(queue)).await?;
        follow(lines, &progress, false).await
    };
    let failure = match imported.await {
        Ok(imported) => return Ok(imported),
        Err(failure) => failure,
    };
    match told.try_recv() {
        Ok(error) => Err(Failure::io(format!("read {what}"), &error)),
        Err(_) => Err(failure),
    }
}

/// Reads the source to its end, or to where nobody takes it any more.
fn read_all(
    mut source: impl Read,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
    bar: &ProgressBar,
) -> io::Result<()> {
    loop {
        let mut buffer = vec![0; PIECE];
        let length = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        buffer.truncate(length);
        bar.inc(length as u64);
        if pieces.blocking_send(Ok(buffer.into())).is_err() {
            return Ok(());
        }
    }
}

async fn follow(
    mut lines: Lines<ImportMessage>,
    progress: &Progress,
    counts: bool,
) -> Result<Imported, Failure> {
    while let Some(message) = lines.next().await? {
        match message {
            ImportMessage::Progress {
                phase,
                entries,
                bytes,
            } => {
                progress.report(&phase, entries, bytes, counts);
            }
            ImportMessage::Done {
                template,
                skipped,
                new,
            } => {
                return Ok(Imported {
                    template: *template,
                    skipped,
                    new,
                });
            }
            ImportMessage::Failed { error } => return Err(error.into()),
        }
    }
    Err(Failure::new(
        ErrorCode::Internal,
        "the engine ended the import without a result",
    ))
}

fn report(context: &Context, name: &Name, imported: &Imported) -> Result<(), Failure> {
    let Imported {
        template,
        skipped,
        new,
    } = imported;
    for entry in skipped.iter().take(NAMED) {
        context.output.note(&format!("left out: {entry}"));
    }
    if skipped.len() > NAMED {
        context
            .output
            .note(&format!("left out: {} more", skipped.len() - NAMED));
    }
    let made = if *new {
        ""
    } else {
        ", whose content was there already"
    };
    context.output.note(&format!(
        "template \"{name}\"{made}: {} entries from a {}, a disk of {}, {} of it used",
        template.entries, template.source, template.size, template.used
    ));
    context
        .output
        .show(template, |template| format!("{}\n", template.id))
}
