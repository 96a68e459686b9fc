//! `host prepare|undo`: done by this process, since an engine may have no rights to it, and need not run.

use clap::{Args, Subcommand};
use cowslip_host::prepare::{Line, Outcome, Preparation, PrepareError, Roots};
use cowslip_host::process::is_root;
use cowslip_model::api::ErrorCode;

use super::Context;
use crate::exit::{Failure, PARTLY_FAILED};
use crate::output::{self, views};
use crate::paths;

/// Give this host what it lacks, and take it back.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// Add cache attributes that sysfs lacks, load kernel modules, raise limits (as root)
    Prepare(Prepare),
    /// Take back what "host prepare" did in this boot (as root); modules stay loaded
    Undo,
}

/// Give this host what it lacks.
#[derive(Debug, Args)]
pub(crate) struct Prepare {
    /// Only say what would be done; as any user
    #[arg(long)]
    dry_run: bool,
}

impl Host {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let layout = context.client.layout();
        let preparation = Preparation::new(Roots::default(), layout.clone());
        match self {
            Self::Prepare(Prepare { dry_run: true }) => show(context, &preparation.look()),
            Self::Prepare(_) => {
                only_root("host prepare").map_err(|failure| {
                    failure.hint("sudo cowslip host prepare; with --dry-run any user may look")
                })?;
                paths::prepare_run(layout)?;
                let lines = preparation.prepare().map_err(failure)?;
                let code = show(context, &lines)?;
                if lines.iter().any(|line| line.outcome == Outcome::Done) {
                    context.output.note("to take it back: cowslip host undo");
                }
                Ok(code)
            }
            Self::Undo => {
                only_root("host undo").map_err(|failure| failure.hint("sudo cowslip host undo"))?;
                let lines = preparation.undo().map_err(failure)?;
                if lines.is_empty() && !context.output.json {
                    context.output.note("nothing to take back");
                    return Ok(0);
                }
                show(context, &lines)
            }
        }
    }
}

fn only_root(verb: &str) -> Result<(), Failure> {
    if is_root() {
        return Ok(());
    }
    let message =
        format!("{verb} needs root: it mounts over sysfs, loads kernel modules and sets sysctls");
    Err(Failure::new(ErrorCode::Forbidden, message))
}

/// With `-q` the names of what was done, or would be.
fn show(context: &Context, lines: &[Line]) -> Result<u8, Failure> {
    let quiet = context.output.quiet && !context.output.json;
    let changed = |line: &&Line| {
        matches!(
            line.outcome,
            Outcome::Needed | Outcome::Done | Outcome::Undone
        )
    };
    let shown: Vec<Line> = lines
        .iter()
        .filter(|line| !quiet || changed(line))
        .cloned()
        .collect();
    context
        .output
        .list(&shown, |line| line.object.clone(), views::preparation)?;
    let mut code = 0;
    for line in lines.iter().filter(|line| line.outcome == Outcome::Failed) {
        let message = format!(
            "{} \"{}\": {}",
            line.part.as_str(),
            line.object,
            line.detail
        );
        output::failure(&Failure::new(ErrorCode::Internal, message));
        code = PARTLY_FAILED;
    }
    Ok(code)
}

fn failure(error: PrepareError) -> Failure {
    Failure::new(ErrorCode::Internal, error.to_string())
}
