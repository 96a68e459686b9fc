//! `doctor`, `info`, `gc`, `version`: the engine and its host.

use clap::Args;
use cowslip_model::api::{DoctorReport, GcReport, Info};
use serde::{Deserialize, Serialize};

use super::Context;
use super::lifecycle::NOTHING;
use crate::client::{Path, VERSION};
use crate::exit::Failure;
use crate::output::table::Style;
use crate::output::{self, views};

/// Exit code of `doctor` where something that is needed fails, and of `gc` where something is left.
const UNHEALTHY: u8 = 1;

pub(super) async fn doctor(context: &Context) -> Result<u8, Failure> {
    let report: DoctorReport = context.client.get(Path::to("doctor")).await?;
    context.output.show(&report, |report| {
        views::doctor(report, Style::of_stdout().colour)
    })?;
    Ok(if report.healthy { 0 } else { UNHEALTHY })
}

pub(super) async fn info(context: &Context) -> Result<u8, Failure> {
    let info: Info = context.client.get(Path::to("info")).await?;
    context.output.show(&info, views::info)?;
    Ok(0)
}

/// Release whatever no sandbox owns.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Forget all downloads of images too, and not only what the cache may not keep
    #[arg(long)]
    images: bool,
}

impl Gc {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = match self.images {
            true => Path::to("gc").query("images", "true"),
            false => Path::to("gc"),
        };
        let report: GcReport = context.client.post(path, &NOTHING).await?;
        context.output.show(&report, views::gc)?;
        Ok(if report.left.is_empty() { 0 } else { UNHEALTHY })
    }
}

/// What `GET /v1/version` answers.
#[derive(Debug, Deserialize)]
struct EngineVersion {
    version: String,
}

/// What `version --json` prints.
#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    /// Null where no engine runs: none is started to be asked.
    engine: Option<String>,
}

pub(super) async fn version(context: &Context) -> Result<u8, Failure> {
    let engine = context
        .client
        .get_running::<EngineVersion>(Path::to("version"))
        .await?;
    let versions = Versions {
        client: VERSION,
        engine: engine.map(|engine| engine.version),
    };
    context.output.show(&versions, |versions| {
        let engine = versions.engine.as_deref().unwrap_or("not running");
        format!("client  {}\nengine  {engine}\n", versions.client)
    })?;
    Ok(0)
}

/// Asks the engine to end; false when none runs.
pub(super) async fn shut_down(context: &Context) -> Result<bool, Failure> {
    let asked = context.client.post_running(Path::to("shutdown")).await?;
    if !asked {
        context.output.note("no engine is running");
    } else if context.output.json {
        output::json(&serde_json::json!({ "stopped": true }))?;
    }
    Ok(asked)
}
