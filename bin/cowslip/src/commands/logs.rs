//! `logs`: what a sandbox wrote.

use clap::Args;

use super::Context;
use crate::client::Path;
use crate::exit::Failure;
use crate::output;

/// Print what a sandbox wrote.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// The guest's console: kernel and agent
    #[arg(long)]
    console: bool,
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = Path::to("sandboxes")
            .segment(&self.sandbox)
            .segment("logs")
            .flag("console", self.console)
            .flag("follow", self.follow);
        let mut octets = context.client.octets(path).await?;
        while let Some(piece) = octets.next().await? {
            output::raw(&piece)?;
        }
        Ok(0)
    }
}
