//! `template build`: a Dockerfile's steps, each in a sandbox of its own.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use cowslip_model::api::{
    BuildAction, BuildBase, BuildStepRequest, Checkpoint, ClientMessage, ErrorCode, FlattenRequest,
    ServerMessage, Template,
};
use cowslip_model::{ByteSize, CheckpointId, Name};
use cowslip_registry::Reference;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{COLLECTION, Context, import};
use crate::build::BuildError;
use crate::build::context::{Context as Files, Copied};
use crate::build::recipe::{Action, Recipe, Step};
use crate::client::{Path, Said, Sender, Session};
use crate::commands::values;
use crate::exit::Failure;

/// Bytes of files that are sent at once.
const PIECE: usize = 256 << 10;

/// Make a template as a Dockerfile says.
#[derive(Debug, Args)]
#[command(after_help = "\
Known are FROM (a template, or an image of a registry, which becomes one), RUN, COPY, ENV, ARG, WORKDIR, USER, SHELL, ENTRYPOINT, CMD, LABEL, EXPOSE and
STOPSIGNAL. Each RUN and COPY is a step: a new sandbox boots on the disk of the step before, and its disk becomes
a checkpoint, without a copy. A step whose content is the same as once before is not taken again: its checkpoint
is there (cowslip checkpoint ls; cowslip checkpoint rm forgets it).")]
pub(crate) struct Build {
    /// The template's name
    #[arg(value_name = "NAME", value_parser = values::name)]
    name: Name,
    /// The directory whose files may be copied
    #[arg(value_name = "DIR", default_value = ".")]
    context: PathBuf,
    /// The Dockerfile; else DIR/Dockerfile
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A value for an ARG
    #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = argument)]
    arguments: Vec<(String, String)>,
    /// Take every step again
    #[arg(long)]
    no_cache: bool,
    /// Leave the sandbox of a step that fails, to be looked at
    #[arg(long)]
    debug: bool,
    /// Virtual processors of a step's sandbox
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory of a step's sandbox
    #[arg(short, long, value_name = "SIZE", value_parser = values::size)]
    memory: Option<ByteSize>,
    /// Size of the template's disk; else 4G more than the one that it begins with
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    disk: Option<ByteSize>,
    /// Name or id of the kernel
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
}

/// What the template of an image is called: `docker.io-library-debian-12-1f2e3d4c`. The last part is of the digest of the
/// whole reference, since different ones may be alike otherwise.
fn name_of(reference: &Reference) -> Option<Name> {
    let text = reference.to_string();
    let digest = digest(&serde_json::json!(text));
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let plain: String = text
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .collect();
    let plain: String = plain.to_ascii_lowercase().chars().take(48).collect();
    format!("{plain}-{}", digest.get(..12)?).parse().ok()
}

fn argument(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("give it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn unusable(what: &str) -> impl Fn(BuildError) -> Failure + '_ {
    move |error| Failure::usage(format!("build \"{what}\"")).because(error)
}

impl Build {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let name = self.name.to_string();
        let path = match &self.file {
            Some(path) => path.clone(),
            None => self.context.join("Dockerfile"),
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Failure::io(format!("read \"{}\"", path.display()), &error))?;
        let arguments: BTreeMap<_, _> = self.arguments.iter().cloned().collect();
        let recipe = Recipe::parse(&text, arguments).map_err(unusable(&name))?;
        self.refuse_taken(context).await?;
        let base = self.base(context, &recipe.from).await?;
        let files = Files::open(&self.context).map_err(unusable(&name))?;
        let below = base.config.clone().unwrap_or_default();
        let plan = recipe.plan(below, &files).map_err(unusable(&name))?;
        for note in &plan.notes {
            context.output.note(note);
        }
        let first = serde_json::json!([base.id, base.digest, base.config, self.disk, self.kernel]);
        let mut below = digest(&first);
        let mut from = BuildBase::Template(base.id.to_string());
        let count = plan.steps.len();
        for (index, step) in plan.steps.iter().enumerate() {
            let key = digest(&key_of(&below, step).map_err(unusable(&name))?);
            let title = format!(
                "step {} of {count}, line {}: {}",
                index + 1,
                step.line,
                step.words
            );
            // The next step's key is of this very disk: one that was made anew is not the one before.
            below = self
                .take(context, from, &key, step, &title)
                .await?
                .to_string();
            from = BuildBase::Checkpoint(below.clone());
        }
        let BuildBase::Checkpoint(last) = from else {
            return Err(Failure::new(ErrorCode::Internal, "a build without steps"));
        };
        let request = FlattenRequest {
            source: last,
            name: self.name.clone(),
            config: Some(plan.config),
        };
        let route = Path::to(COLLECTION).segment("flatten");
        let made: Template = context.client.post(route, &request).await?;
        context.output.note(&format!(
            "template \"{name}\": {} of {} used, {} entries",
            made.used, made.size, made.entries
        ));
        context
            .output
            .show(&made, |made| format!("{}\n", made.id))?;
        Ok(0)
    }

    /// Better now than after the steps.
    async fn refuse_taken(&self, context: &Context) -> Result<(), Failure> {
        let templates: Vec<Template> = context.client.get(Path::to(COLLECTION)).await?;
        match templates.iter().any(|one| one.names.contains(&self.name)) {
            true => Err(Failure::new(
                ErrorCode::Exists,
                format!("the name \"{}\" is taken by another template", self.name),
            )
            .hint("choose another name, or remove that one")),
            false => Ok(()),
        }
    }

    /// The template that the build begins with: one that is there, or one of an image of a registry.
    async fn base(&self, context: &Context, from: &str) -> Result<Template, Failure> {
        let look = async |name: &str| {
            let path = Path::to(COLLECTION).segment(name);
            match context.client.get::<Template>(path).await {
                Ok(template) => Ok(Some(template)),
                Err(failure) if failure.error.code == ErrorCode::NotFound => Ok(None),
                Err(failure) => Err(failure),
            }
        };
        let reference: Option<Reference> = from.parse().ok();
        let name = reference.as_ref().and_then(name_of);
        // What no template is called is looked for under the name that its import here gives it.
        if from.parse::<Name>().is_ok()
            && let Some(found) = look(from).await?
            // And not one whose id begins so.
            && (found.names.iter().any(|name| name.as_str() == from) || found.id.to_string() == from)
        {
            return Ok(found);
        }
        let (Some(reference), Some(name)) = (reference, name) else {
            let line = format!("FROM \"{from}\": there is no such template");
            return Err(Failure::new(ErrorCode::NotFound, line)
                .hint("import it first: cowslip template import NAME SOURCE"));
        };
        if let Some(found) = look(name.as_str()).await? {
            return Ok(found);
        }
        let pulled = import::pulled(context, &name, reference).await;
        pulled.map_err(|failure| {
            let line = format!(
                "FROM \"{from}\": there is no such template, and no such image could be had"
            );
            let mut outer = Failure::new(failure.error.code, line).because(&failure.error.message);
            for cause in &failure.error.causes {
                outer = outer.because(cause);
            }
            outer.hint("import it first: cowslip template import NAME SOURCE")
        })
    }

    /// Takes a step, or finds that it was taken; gives what the next one begins with.
    async fn take(
        &self,
        context: &Context,
        base: BuildBase,
        key: &str,
        step: &Step,
        title: &str,
    ) -> Result<CheckpointId, Failure> {
        let reference = format!("build-{}", &key[..40]);
        let route = || Path::to("checkpoints").segment(&reference);
        match context.client.get::<Checkpoint>(route()).await {
            Ok(found) if !self.no_cache => {
                context.output.note(&format!("{title} (as before)"));
                return Ok(found.id);
            }
            Ok(_) => context.client.delete(route()).await?,
            Err(failure) if failure.error.code == ErrorCode::NotFound => {}
            Err(failure) => return Err(failure),
        }
        context.output.note(title);
        let name: Name = reference
            .parse()
            .map_err(|error| Failure::new(ErrorCode::Internal, format!("name a step: {error}")))?;
        let request = BuildStepRequest {
            base,
            name,
            action: action_of(&step.action),
            directories: step.directories.clone(),
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            kernel: self.kernel.clone(),
            keep_failed: self.debug,
        };
        let session = Path::to("build").segment("step");
        let session = context.client.session(session, &request).await?;
        let ended = follow(session, &step.action).await?;
        match ended.code {
            0 => Ok(context.client.get::<Checkpoint>(route()).await?.id),
            code => Err(self.failed(code, step, &ended.sandbox)),
        }
    }

    fn failed(&self, code: i32, step: &Step, sandbox: &str) -> Failure {
        let message = format!(
            "build \"{}\": the command of line {} ended with {code}",
            self.name, step.line
        );
        let failure = Failure::new(ErrorCode::Invalid, message);
        match self.debug {
            true => failure.hint(format!(
                "look at it: cowslip shell {sandbox}; remove it: cowslip rm --force {sandbox}"
            )),
            false => failure.hint("add --debug to keep its sandbox"),
        }
    }
}

/// What a step's session came to.
struct Ended {
    code: i32,
    /// The name of its sandbox.
    sandbox: String,
}

/// Shows a step's output, on standard error, until it has ended. A client that dies ends the step.
async fn follow(session: Session, action: &Action) -> Result<Ended, Failure> {
    let Session {
        sender,
        mut incoming,
    } = session;
    // Held to the end: without it the session would look given up.
    let mut sender = Some(sender);
    let mut sandbox = String::new();
    let mut feeding = None;
    let mut into_directory = false;
    let code = loop {
        let said = tokio::select! {
            said = incoming.next() => said?,
            // Files that could not be read: the session ends, and the step with it.
            fed = fed(&mut feeding) => {
                feeding = None;
                fed?;
                continue;
            }
        };
        let said = said.ok_or_else(|| {
            let message = "the engine closed the session before the step ended";
            Failure::new(ErrorCode::Internal, message)
        })?;
        match said {
            Said::Stdout(bytes) | Said::Stderr(bytes) => {
                let shown = io::stderr().write_all(&bytes);
                shown.map_err(|error| Failure::io("show the step's output", &error))?;
            }
            Said::Message(ServerMessage::Sandbox { sandbox: found }) => {
                sandbox = found.name.to_string();
            }
            Said::Message(ServerMessage::Started { .. }) => {
                if let Action::Copy { files, .. } = action
                    && let Some(sender) = sender.take()
                {
                    feeding = Some(feed(sender, files.clone(), into_directory));
                } else if let Some(sender) = &mut sender {
                    sender.message(&ClientMessage::StdinEnd).await?;
                }
            }
            Said::Message(ServerMessage::Destination { is_directory }) => {
                into_directory = is_directory;
            }
            Said::Message(ServerMessage::Exited { code }) => break code,
            Said::Message(ServerMessage::Failed { error }) => return Err(error.into()),
            Said::Message(_) => {}
        }
    };
    Ok(Ended { code, sandbox })
}

/// Resolves when the files are sent, or could not be.
async fn fed(feeding: &mut Option<JoinHandle<Result<(), Failure>>>) -> Result<(), Failure> {
    match feeding {
        Some(task) => task
            .await
            .unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the files' task died"))),
        None => std::future::pending().await,
    }
}

/// Sends a step's files, from a thread that reads them. Their end is only told where all of them were read: the engine
/// counts them as well.
fn feed(
    mut sender: Sender,
    files: Copied,
    into_directory: bool,
) -> JoinHandle<Result<(), Failure>> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(4);
    let reading = tokio::task::spawn_blocking(move || {
        let to = io::BufWriter::with_capacity(PIECE, Pieces(pieces));
        files.write(to, into_directory)
    });
    tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if !sender.stdin(&bytes).await {
                break;
            }
        }
        drop(queue);
        let read = reading.await;
        let read = read.map_err(|_| Failure::new(ErrorCode::Internal, "the files' thread died"))?;
        match read {
            Ok(()) => {
                let _ = sender.message(&ClientMessage::StdinEnd).await;
                Ok(())
            }
            // The engine took no more: it says why.
            Err(BuildError::File {
                operation: "send", ..
            }) => Ok(()),
            Err(error) => Err(unusable("the files")(error)),
        }
    })
}

struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn action_of(action: &Action) -> BuildAction {
    match action {
        Action::Nothing => BuildAction::Nothing,
        Action::Run(exec) => BuildAction::Run(exec.clone()),
        Action::Copy { files, owner } => BuildAction::Unpack {
            directory: files.directory.clone(),
            name: files.name.clone(),
            owner: owner.clone(),
            entries: files.entries(),
        },
    }
}

/// All that decides what a step comes to, with the key of the step before.
fn key_of(before: &str, step: &Step) -> Result<serde_json::Value, BuildError> {
    let files = match &step.action {
        Action::Copy { files, .. } => Some(files.digest()?),
        _ => None,
    };
    Ok(serde_json::json!([
        before,
        step.directories,
        action_of(&step.action),
        files
    ]))
}

fn digest(value: &serde_json::Value) -> String {
    let digest = Sha256::digest(value.to_string());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
