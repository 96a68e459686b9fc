//! `diff`: what the layers of a disk changed.

use clap::Args;
use cowslip_model::api::Diff as Object;

use super::Context;
use crate::client::Path;
use crate::exit::Failure;
use crate::output::views;

/// Say how much each layer of a disk changed.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Name or id of the sandbox or checkpoint
    #[arg(value_name = "SANDBOX|CHECKPOINT")]
    source: String,
}

impl Diff {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = Path::to("diff").segment(&self.source);
        let found: Object = context.client.get(path).await?;
        if found.live {
            context.output.note(
                "the sandbox runs and writes its last layer: the numbers are those of a moment ago",
            );
        }
        context.output.show(&found, views::diff)?;
        Ok(0)
    }
}
