//! `template import|build|export|from|ls|inspect|rm`.

mod build;
mod export;
mod from;
mod import;
mod source;

use clap::{Args, Subcommand};
use cowslip_model::Timestamp;
use cowslip_model::api::Template as Object;

use super::{Context, inspect, many};
use crate::client::Path;
use crate::exit::Failure;
use crate::output::views;

pub(crate) use build::Build;
pub(crate) use export::Export;
pub(crate) use from::From;
pub(crate) use import::Import;

const COLLECTION: &str = "templates";

/// Import and keep templates.
#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    /// Import a root file system or a container image
    Import(Import),
    /// Make a template as a Dockerfile says
    Build(Build),
    /// Write a template to a file: a tar, or a container image
    Export(Export),
    /// Make a template of the disk of a sandbox or a checkpoint
    From(From),
    /// List templates
    Ls,
    /// Show all there is to know about templates, as JSON
    Inspect(Names),
    /// Remove templates
    Rm(Names),
}

/// The templates of a verb.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(value_name = "TEMPLATE", required = true)]
    names: Vec<String>,
}

impl Template {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Import(import) => import.run(context).await,
            Self::Build(build) => build.run(context).await,
            Self::Export(export) => export.run(context).await,
            Self::From(from) => from.run(context).await,
            Self::Ls => ls(context).await,
            Self::Inspect(verb) => {
                inspect::inspect::<Object>(context, COLLECTION, &verb.names).await
            }
            Self::Rm(verb) => {
                many::named(context, &verb.names, |name| async move {
                    let path = Path::to(COLLECTION).segment(&name);
                    context.client.delete(path).await.map(|()| name)
                })
                .await
            }
        }
    }
}

async fn ls(context: &Context) -> Result<u8, Failure> {
    let mut templates: Vec<Object> = context.client.get(Path::to(COLLECTION)).await?;
    templates.sort_by(|a, b| a.names.cmp(&b.names));
    context.output.list(
        &templates,
        |template| template.id.to_string(),
        |templates| views::templates(templates, Timestamp::now()),
    )?;
    Ok(0)
}
