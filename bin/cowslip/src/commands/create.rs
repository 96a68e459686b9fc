//! `create`: a sandbox that is not started.

use clap::Args;
use cowslip_model::api::Sandbox;

use super::Context;
use super::values::{Env, Shape};
use crate::client::Path;
use crate::exit::Failure;

/// Make a sandbox without starting it.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    env: Env,
    /// Working directory of its processes
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User of its processes: a name, UID or UID:GID
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Name or id of the template
    #[arg(value_name = "TEMPLATE")]
    template: String,
}

impl Create {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let env = self.env.collect()?;
        let request = self
            .shape
            .request(self.template, env, self.workdir, self.user);
        let sandbox: Sandbox = context.client.post(Path::to("sandboxes"), &request).await?;
        context
            .output
            .show(&sandbox, |sandbox| format!("{}\n", sandbox.id))?;
        Ok(0)
    }
}
