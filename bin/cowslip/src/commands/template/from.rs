//! `template from`.

use clap::Args;
use cowslip_model::Name;
use cowslip_model::api::{FlattenRequest, Template};

use super::{COLLECTION, Context};
use crate::client::Path;
use crate::commands::values;
use crate::exit::Failure;

/// Make a template of a disk: the template below it and all its layers, as one image.
#[derive(Debug, Args)]
#[command(
    after_help = "A running sandbox writes out what it has in memory, stands still for a moment and \
                  runs on. A checkpoint's disk is what was on it at that instant: files that were \
                  not synced then are only in its memory."
)]
pub(crate) struct From {
    /// Name or id of the sandbox or checkpoint
    #[arg(value_name = "SANDBOX|CHECKPOINT")]
    source: String,
    /// The template's name
    #[arg(value_name = "NAME", value_parser = values::name)]
    name: Name,
}

impl From {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let request = FlattenRequest {
            source: self.source,
            name: self.name,
            config: None,
        };
        let path = Path::to(COLLECTION).segment("flatten");
        let made: Template = context.client.post(path, &request).await?;
        context.output.note(&format!(
            "template \"{}\" from {}: {} of {} used, {} entries",
            request.name, made.source, made.used, made.size, made.entries
        ));
        context
            .output
            .show(&made, |made| format!("{}\n", made.id))?;
        Ok(0)
    }
}
