//! `start`, `stop`, `rm`, `pause`, `resume`: each on several sandboxes.

use std::collections::BTreeMap;

use clap::Args;
use cowslip_model::api::{Sandbox, StopRequest};

use super::{Context, many};
use crate::client::Path;
use crate::exit::Failure;

/// The sandboxes of a verb.
#[derive(Debug, Args)]
pub(crate) struct Sandboxes {
    /// Names or ids
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
}

/// Boot stopped sandboxes.
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    sandboxes: Sandboxes,
}

/// Shut sandboxes down.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds that its processes get to end before they are killed
    #[arg(
        short = 't',
        long = "timeout",
        visible_alias = "time",
        value_name = "SECONDS"
    )]
    timeout: Option<u64>,
    #[command(flatten)]
    sandboxes: Sandboxes,
}

/// Remove sandboxes.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Remove running ones too
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    sandboxes: Sandboxes,
}

/// Take sandboxes to disk.
#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    sandboxes: Sandboxes,
}

/// Bring paused sandboxes back.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    sandboxes: Sandboxes,
}

fn action(name: &str, action: &str) -> Path {
    Path::to("sandboxes").segment(name).segment(action)
}

/// The empty request of a verb that takes nothing.
pub(crate) const NOTHING: BTreeMap<String, String> = BTreeMap::new();

impl Start {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        post(context, &self.sandboxes.names, "start").await
    }
}

impl Pause {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        post(context, &self.sandboxes.names, "pause").await
    }
}

impl Resume {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        post(context, &self.sandboxes.names, "resume").await
    }
}

impl Stop {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let request = StopRequest {
            timeout: self.timeout,
        };
        many::named(context, &self.sandboxes.names, |name| {
            let request = &request;
            async move {
                context
                    .client
                    .post::<Sandbox>(action(&name, "stop"), request)
                    .await
            }
        })
        .await
    }
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        many::named(context, &self.sandboxes.names, |name| async move {
            let path = Path::to("sandboxes")
                .segment(&name)
                .flag("force", self.force);
            context.client.delete(path).await.map(|()| name)
        })
        .await
    }
}

async fn post(context: &Context, names: &[String], verb: &str) -> Result<u8, Failure> {
    many::named(context, names, |name| async move {
        context
            .client
            .post::<Sandbox>(action(&name, verb), &NOTHING)
            .await
    })
    .await
}
