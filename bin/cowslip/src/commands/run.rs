//! `run`: a sandbox and a command in it, in one session.

use clap::Args;
use cowslip_model::api::RunRequest;

use super::Context;
use super::process::{Attach, Process};
use super::session::{self, Wanted};
use super::values::{self, Shape};
use crate::client::Path;
use crate::exit::Failure;

/// Make a sandbox and run a command in it.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) session: Attach,
    #[command(flatten)]
    process: Process,
    #[command(flatten)]
    shape: Shape,
    /// Remove the sandbox when the command ends
    #[arg(long, conflicts_with = "keep")]
    pub(crate) rm: bool,
    /// Leave the sandbox running when the command ends; else it is stopped
    #[arg(long)]
    keep: bool,
    /// Leave the command running in the background and print the sandbox's id
    #[arg(short, long)]
    detach: bool,
    /// Say on standard error how long each step took
    #[arg(long)]
    timings: bool,
    /// Start this program instead of the image's entrypoint: one word, or a JSON list of words; '' for none
    #[arg(long, value_name = "PROGRAM", value_parser = values::entrypoint)]
    entrypoint: Option<values::Entrypoint>,
    /// Name or id of the template
    #[arg(value_name = "TEMPLATE")]
    pub(crate) template: String,
    /// The command and its arguments; if left out, what the template's image says, and with -d it may be
    /// nothing. Where the image has an entrypoint they are its arguments
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) argv: Vec<String>,
}

impl Run {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let Self {
            session: attach,
            process,
            shape,
            rm,
            keep,
            detach,
            timings,
            entrypoint,
            template,
            argv,
        } = self;
        if !detach {
            attach.check()?;
        }
        let exec = process.request(argv, attach, detach)?;
        let sandbox = shape.request(
            template,
            exec.env.clone(),
            exec.workdir.clone(),
            exec.user.clone(),
        );
        let request = RunRequest {
            sandbox,
            exec: Some(exec),
            entrypoint: entrypoint.map(|given| given.0),
            remove: rm,
            keep,
        };
        let wanted = Wanted {
            attach,
            detach,
            timings,
        };
        let outcome = session::follow(context, Path::to("run"), &request, wanted).await?;
        if detach && let Some(sandbox) = &outcome.sandbox {
            context
                .output
                .show(sandbox, |sandbox| format!("{}\n", sandbox.id))?;
        }
        Ok(outcome.code.unwrap_or(0))
    }
}
