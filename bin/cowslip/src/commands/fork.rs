//! `fork` and `restore`: sandboxes from a checkpoint.

use clap::Args;
use cowslip_model::api::{ForkRequest, Sandbox};
use cowslip_model::{Isolation, Lifetime, Name, OnExpiry};

use super::{Context, values};
use crate::client::Path;
use crate::exit::Failure;

/// Make sandboxes from a checkpoint.
#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    #[command(flatten)]
    one: Restore,
}

/// Make one sandbox from a checkpoint.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Its name; with several, -1, -2, … are appended
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    name: Option<Name>,
    /// End each after this time; none: as the checkpoint's sandbox
    #[arg(long, value_name = "SPAN", value_parser = values::lifetime)]
    ttl: Option<Lifetime>,
    /// How: remove, stop or pause; none: as the checkpoint's sandbox
    #[arg(long, value_name = "HOW")]
    on_expiry: Option<OnExpiry>,
    /// How Firecracker is kept apart from the host: jail or direct; none: as the checkpoint's sandbox
    #[arg(long, value_name = "HOW")]
    isolation: Option<Isolation>,
    #[command(flatten)]
    rules: values::Rules,
    /// Name or id of the checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,
}

impl Fork {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        self.one.make(context, self.count).await
    }
}

impl Restore {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        self.make(context, 1).await
    }

    async fn make(self, context: &Context, count: u32) -> Result<u8, Failure> {
        let path = Path::to("checkpoints")
            .segment(&self.checkpoint)
            .segment("fork");
        let request = ForkRequest {
            count: Some(count),
            name: self.name,
            ttl: self.ttl,
            on_expiry: self.on_expiry,
            isolation: self.isolation,
            network: (!self.rules.is_empty()).then(|| self.rules.request()),
        };
        let made: Vec<Sandbox> = context.client.post(path, &request).await?;
        context.output.show(&made, |made| {
            made.iter()
                .map(|sandbox| format!("{}\n", sandbox.id))
                .collect()
        })?;
        Ok(0)
    }
}
