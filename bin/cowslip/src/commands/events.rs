//! `events`: what happened, a line each.

use clap::Args;
use cowslip_model::api::{ErrorCode, Event};

use super::Context;
use crate::client::Path;
use crate::exit::Failure;
use crate::output;

/// Print what happened.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on as more happens
    #[arg(short, long)]
    follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
}

impl Events {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = Path::to("events")
            .query("after", &self.after.to_string())
            .flag("follow", self.follow);
        let mut events = context.client.lines::<Event>(path).await?;
        while let Some(event) = events.next().await? {
            if context.output.json {
                // One a line, so that it can be followed.
                let line = serde_json::to_string(&event)
                    .map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
                output::line(&line)?;
            } else {
                output::text(&output::views::event(&event))?;
            }
        }
        Ok(0)
    }
}
