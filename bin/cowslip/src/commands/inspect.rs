//! `inspect`: everything about objects, as a JSON array.

use clap::Args;
use cowslip_model::api::{Phase, Sandbox};
use cowslip_model::{Name, SandboxId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Context, many};
use crate::client::Path;
use crate::exit::Failure;
use crate::output::{self, views};

/// Show all there is to know about sandboxes.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Names or ids
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
    /// Show how long the parts of their last start, fork or resume took
    #[arg(long)]
    timings: bool,
}

impl Inspect {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        if self.timings {
            return self.timings(context).await;
        }
        inspect::<Sandbox>(context, "sandboxes", &self.names).await
    }
}

impl Inspect {
    async fn timings(self, context: &Context) -> Result<u8, Failure> {
        let get = |name: String| async move {
            let path = Path::to("sandboxes").segment(&name);
            context.client.get::<Sandbox>(path).await
        };
        let results = many::each(&self.names, get, |_, _| Ok(())).await?;
        let all: Vec<Timings> = results.done.iter().map(Timings::of).collect();
        context
            .output
            .show(&all, |_| views::timings(&results.done))?;
        Ok(results.exit())
    }
}

/// How long the parts of a sandbox's last start took.
#[derive(Debug, Serialize)]
struct Timings {
    id: SandboxId,
    name: Name,
    phases: Vec<Phase>,
}

impl Timings {
    fn of(sandbox: &Sandbox) -> Self {
        Self {
            id: sandbox.id,
            name: sandbox.name.clone(),
            phases: sandbox.phases.clone(),
        }
    }
}

/// Prints the objects of these names in `collection`; those that are not there are reported.
pub(super) async fn inspect<T: Serialize + DeserializeOwned>(
    context: &Context,
    collection: &str,
    names: &[String],
) -> Result<u8, Failure> {
    let get = |name: String| async move {
        context
            .client
            .get::<T>(Path::to(collection).segment(&name))
            .await
    };
    let results = many::each(names, get, |_, _| Ok(())).await?;
    output::json(&results.done)?;
    Ok(results.exit())
}
