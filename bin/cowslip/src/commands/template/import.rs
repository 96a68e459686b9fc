//! `template import`: a directory is read by the engine, a file is sent to it.

use std::fs::File;
use std::io::{self, IsTerminal, Read};

use clap::Args;
use cowslip_model::api::{
    ErrorCode, ImportFormat, ImportMessage, ImportOptions, ImportRequest, PullPolicy, Template,
};
use cowslip_model::{ByteSize, Name};
use cowslip_registry::Reference;
use indicatif::ProgressBar;
use tokio::sync::{mpsc, oneshot};

use super::COLLECTION;
use crate::client::{Lines, Path, Upload};
use crate::commands::template::source::{self, Place, Source};
use crate::commands::{Context, values};
use crate::exit::Failure;
use crate::output::{self, progress::Progress};

/// Bytes read from the source at once.
const PIECE: usize = 256 << 10;
/// So many left-out entries are named.
const NAMED: usize = 10;

/// Import a template: a root file system, or a container image.
#[derive(Debug, Args)]
#[command(after_help = "\
SOURCE is one of
  DIR                        a directory: a root file system
  FILE.tar[.gz|.zst|.xz], -  a tar of one; - is standard input
  oci:DIR[:TAG]              an OCI image layout
  oci-archive:FILE[:TAG]     one in a tar
  docker-archive:FILE[:TAG]  what docker save wrote
  docker://IMAGE             an image of a registry, as docker://debian:12, with what docker login keeps
An archive may be compressed, and come from standard input: docker-archive:-")]
pub(crate) struct Import {
    /// Its name
    #[arg(value_name = "NAME", value_parser = values::name)]
    name: Name,
    /// Where its content is
    #[arg(value_name = "SOURCE", value_parser = source::parse)]
    source: Source,
    /// Make its disk at least this large, as 2G; else it has room for the content and a little more
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    size: Option<ByteSize>,
    /// Take this platform of an image, as linux/arm64; else the host's
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// When the registry is asked: missing (from the cache where the whole image is there), always (for what the tag is
    /// now) or never
    #[arg(long, value_name = "WHEN", value_parser = values::pull, default_value = "missing")]
    pull: PullPolicy,
    /// Let run start this program instead of the image's: one word, or a JSON list of words
    #[arg(long, value_name = "PROGRAM", value_parser = values::entrypoint)]
    entrypoint: Option<values::Entrypoint>,
}

/// What is there now.
struct Imported {
    template: Template,
    skipped: Vec<String>,
    new: bool,
}

impl Import {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let Self {
            name,
            source,
            size,
            platform,
            pull,
            entrypoint,
        } = self;
        let shown = output::stderr_is_terminal() && !context.output.quiet;
        let options = ImportOptions {
            size,
            platform,
            entrypoint: entrypoint.map(|given| given.0),
        };
        let imported = match source {
            Source::Place(place) => {
                let progress = Progress::new(shown, None);
                take(context, &name, place, pull, options, &progress).await?
            }
            Source::Bytes(format, file, tag) => {
                let route = Path::to(COLLECTION).query("name", name.as_str());
                let route = with_options(route, format, tag.as_deref(), &options)?;
                let (reader, size, what) = open(file.as_deref())?;
                let progress = Progress::new(shown, size);
                send(context, route, reader, &what, progress).await?
            }
        };
        report(context, &name, &imported);
        context
            .output
            .show(&imported.template, |template| format!("{}\n", template.id))?;
        Ok(0)
    }
}

/// Lets the engine import what it reads itself.
async fn take(
    context: &Context,
    name: &Name,
    place: Place,
    pull: PullPolicy,
    options: ImportOptions,
    progress: &Progress,
) -> Result<Imported, Failure> {
    let request = ImportRequest {
        name: name.clone(),
        source: place.for_engine(pull).await?,
        options,
    };
    let route = Path::to(COLLECTION).segment("import");
    let lines = context.client.post_lines(route, &request).await?;
    follow(lines, progress, true).await
}

/// Makes a template of an image of a registry, for a build that begins with it.
pub(super) async fn pulled(
    context: &Context,
    name: &Name,
    reference: Reference,
) -> Result<Template, Failure> {
    let shown = output::stderr_is_terminal() && !context.output.quiet;
    let progress = Progress::new(shown, None);
    let (place, pull) = (Place::Registry(reference), PullPolicy::default());
    let options = ImportOptions::default();
    let imported = take(context, name, place, pull, options, &progress).await?;
    drop(progress);
    report(context, name, &imported);
    Ok(imported.template)
}

/// The options, as an upload's query has them.
fn with_options(
    route: Path,
    format: ImportFormat,
    tag: Option<&str>,
    options: &ImportOptions,
) -> Result<Path, Failure> {
    let word = match format {
        ImportFormat::Tar => "tar",
        ImportFormat::OciArchive => "oci-archive",
        ImportFormat::DockerArchive => "docker-archive",
    };
    let list = |words: &Vec<String>| {
        serde_json::to_string(words)
            .map_err(|error| Failure::usage(format!("the entrypoint cannot be sent: {error}")))
    };
    let size = options.size.map(|size| size.bytes().to_string());
    let entrypoint = options.entrypoint.as_ref().map(list).transpose()?;
    let more = [
        ("tag", tag),
        ("size", size.as_deref()),
        ("platform", options.platform.as_deref()),
        ("entrypoint", entrypoint.as_deref()),
    ];
    let route = route.query("format", word);
    let given = more
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    Ok(given.fold(route, |route, (key, value)| route.query(key, value)))
}

/// What is sent: its bytes, how many, and what to call it.
type Opened = (Box<dyn Read + Send>, Option<u64>, String);

fn open(file: Option<&std::path::Path>) -> Result<Opened, Failure> {
    let Some(path) = file else {
        if io::stdin().is_terminal() {
            return Err(
                Failure::usage("a tar is to come from standard input, a terminal")
                    .hint("pipe it in: cowslip template import NAME - < rootfs.tar"),
            );
        }
        return Ok((Box::new(io::stdin()), None, "standard input".to_owned()));
    };
    let failed = |error| Failure::io(format!("read \"{}\"", path.display()), &error);
    let file = File::open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?;
    let size = kind.is_file().then_some(kind.len());
    Ok((Box::new(file), size, format!("\"{}\"", path.display())))
}

/// Sends a tar and follows the import.
async fn send(
    context: &Context,
    route: Path,
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
    pieces: &mpsc::Sender<io::Result<bytes::Bytes>>,
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
            ImportMessage::Layer {
                digest,
                total,
                bytes,
            } => progress.layer(&digest, bytes, total),
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

fn report(context: &Context, name: &Name, imported: &Imported) {
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
        "template \"{name}\"{made}: {} entries ({}), a disk of {}, {} of it used",
        template.entries, template.source, template.size, template.used
    ));
}
