//! `network` and `port`: what sandboxes may reach, and which ports of the host lead to them.

use clap::{Args, Subcommand};
use cowslip_model::api::{Network as Object, Sandbox};
use cowslip_model::network::PublishedPort;
use cowslip_model::{Name, SandboxId};
use serde::Serialize;

use super::{Context, many, values};
use crate::client::Path;
use crate::exit::Failure;
use crate::output::networks;

/// Show and change what sandboxes may reach.
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Show how sandboxes are connected
    Show(Show),
    /// Put a sandbox under these rules, in place of all that it was under; also while it runs
    Set(Set),
}

/// Show how sandboxes are connected.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Names or ids
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
}

/// Put a sandbox under other rules. Without any it reaches the internet, and no port leads to it.
#[derive(Debug, Args)]
pub(crate) struct Set {
    #[command(flatten)]
    rules: values::Rules,
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    name: String,
}

/// List the ports of this host that lead to sandboxes.
#[derive(Debug, Args)]
pub(crate) struct Port {
    /// Names or ids
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
}

/// The network of a sandbox.
#[derive(Debug, Serialize)]
pub(crate) struct Connected {
    id: SandboxId,
    pub(crate) name: Name,
    pub(crate) network: Object,
}

impl Connected {
    fn of(sandbox: Sandbox) -> Self {
        Self {
            id: sandbox.id,
            name: sandbox.name,
            network: sandbox.network,
        }
    }
}

/// The ports of a sandbox.
#[derive(Debug, Serialize)]
pub(crate) struct Ports {
    id: SandboxId,
    pub(crate) name: Name,
    pub(crate) publish: Vec<PublishedPort>,
}

impl Network {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Show(show) => show.run(context).await,
            Self::Set(set) => set.run(context).await,
        }
    }
}

impl Show {
    async fn run(self, context: &Context) -> Result<u8, Failure> {
        let results = many::each(&self.names, |name| sandbox(context, name), |_, _| Ok(())).await?;
        let exit = results.exit();
        let all: Vec<Connected> = results.done.into_iter().map(Connected::of).collect();
        context.output.show(&all, |all| networks::networks(all))?;
        Ok(exit)
    }
}

impl Set {
    async fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = Path::to("sandboxes").segment(&self.name).segment("network");
        let sandbox: Sandbox = context.client.put(path, &self.rules.request()).await?;
        let connected = [Connected::of(sandbox)];
        context
            .output
            .show(&connected[0], |_| networks::networks(&connected))?;
        Ok(0)
    }
}

impl Port {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let results = many::each(&self.names, |name| sandbox(context, name), |_, _| Ok(())).await?;
        let exit = results.exit();
        let ports = |sandbox: Sandbox| Ports {
            id: sandbox.id,
            name: sandbox.name,
            publish: sandbox.network.publish,
        };
        let all: Vec<Ports> = results.done.into_iter().map(ports).collect();
        context.output.show(&all, |all| networks::ports(all))?;
        Ok(exit)
    }
}

async fn sandbox(context: &Context, name: String) -> Result<Sandbox, Failure> {
    let path = Path::to("sandboxes").segment(&name);
    context.client.get(path).await
}
