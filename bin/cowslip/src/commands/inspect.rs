//! `inspect`: everything about objects, as a JSON array.

use clap::Args;
use cowslip_model::api::Sandbox;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Context, many};
use crate::client::Path;
use crate::exit::Failure;
use crate::output;

/// Show all there is to know about sandboxes.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Names or ids
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
}

impl Inspect {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        inspect::<Sandbox>(context, "sandboxes", &self.names).await
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
