//! `checkpoint create|ls|inspect|rm`.

use clap::{Args, Subcommand};
use cowslip_model::api::{Checkpoint as Object, CheckpointRequest};
use cowslip_model::{Name, Timestamp};

use super::{Context, inspect, many, values};
use crate::client::Path;
use crate::exit::Failure;
use crate::output::views;

const COLLECTION: &str = "checkpoints";

/// Take checkpoints, and keep them.
#[derive(Debug, Subcommand)]
pub(crate) enum Checkpoint {
    /// Take a checkpoint of a running sandbox: memory and disk of one instant
    Create(Create),
    /// List checkpoints
    Ls(Ls),
    /// Show all there is to know about checkpoints, as JSON
    Inspect(Inspect),
    /// Remove checkpoints
    Rm(Rm),
}

/// Take a checkpoint.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name; none: one is made up
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    name: Option<Name>,
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

/// List checkpoints.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only those of this sandbox (name or id)
    #[arg(long, value_name = "SANDBOX")]
    sandbox: Option<String>,
}

/// Show checkpoints.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Names or ids
    #[arg(value_name = "CHECKPOINT", required = true)]
    names: Vec<String>,
}

/// Remove checkpoints.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Remove what was forked from them too
    #[arg(long, visible_alias = "force", short_alias = 'f')]
    cascade: bool,
    /// Names or ids
    #[arg(value_name = "CHECKPOINT", required = true)]
    names: Vec<String>,
}

impl Checkpoint {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Create(verb) => verb.run(context).await,
            Self::Ls(verb) => verb.run(context).await,
            Self::Inspect(verb) => {
                inspect::inspect::<Object>(context, COLLECTION, &verb.names).await
            }
            Self::Rm(verb) => verb.run(context).await,
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<u8, Failure> {
        let request = CheckpointRequest {
            sandbox: self.sandbox,
            name: self.name,
        };
        let made: Object = context.client.post(Path::to(COLLECTION), &request).await?;
        context.output.note(&format!(
            "checkpoint \"{}\" of \"{}\": stood still for {:.0} ms, published after {:.0} ms",
            made.name, made.sandbox_name, made.downtime_ms, made.publication_ms
        ));
        context
            .output
            .show(&made, |made| format!("{}\n", made.id))?;
        Ok(0)
    }
}

impl Ls {
    async fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut all: Vec<Object> = context.client.get(Path::to(COLLECTION)).await?;
        if let Some(sandbox) = &self.sandbox {
            all.retain(|one| {
                one.sandbox_name.as_str() == sandbox
                    || one.sandbox.to_string().starts_with(sandbox.as_str())
            });
        }
        all.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(a.name.cmp(&b.name)));
        context.output.list(
            &all,
            |one| one.id.to_string(),
            |all| views::checkpoints(all, Timestamp::now()),
        )?;
        Ok(0)
    }
}

impl Rm {
    async fn run(self, context: &Context) -> Result<u8, Failure> {
        many::named(context, &self.names, |name| async move {
            let path = Path::to(COLLECTION)
                .segment(&name)
                .flag("cascade", self.cascade);
            context.client.delete(path).await.map(|()| name)
        })
        .await
    }
}
